"""Entries of an AIMET encodings file, and their conversion to points of a plan and back.

AIMET counts grids from an offset; a plan has zero points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from avq.types import F32, I64, Edge, QuantPoint

Role = Literal["activation", "param", ""]
Layout = Literal["tensor", "channel", "block"]


@dataclass(frozen=True, slots=True)
class Encoding:
    """An integer grid: x ~ scale * (q + offset) with q from 0 to 2**bits - 1.

    Attributes:
        name: tensor of the ONNX model.
        role: "param" or "activation"; '' in version 2.x, which has no roles.
        bits: width of the grid.
        scale, offset: one per tensor, per channel or per block (flattened, output channels outermost).
        symmetric: as the file marks it; offset -2**(bits-1) is then a signed grid around zero.
        signed: integers are stored signed. Versions before 2.x have no type, only ``symmetric``.
        layout: one scale per tensor, channel or block.
        axis: channel or block axis; None before 2.x, where the operator implies it.
        block_size: elements per scale along ``axis`` for blocks.
        shape: how 2.x nests its scales; () for one number.
        limits: (min, max) per scale as 0.x writes them; None where the version has none.
        line: of its file.
    """

    name: str
    role: Role
    bits: int
    scale: tuple[float, ...]
    offset: tuple[int, ...]
    symmetric: bool
    signed: bool
    layout: Layout = "tensor"
    axis: int | None = None
    block_size: int | None = None
    shape: tuple[int, ...] = ()
    limits: tuple[tuple[float, float], ...] | None = field(default=None, compare=False)
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class UnsupportedEntry:
    """An entry that is no plain integer grid, kept so that the file can be written again.

    Attributes:
        kind: "float" when the tensor stays in floating point; else "exotic".
        what: description for messages.
        body: the entry as JSON values.
    """

    name: str
    role: Role
    kind: Literal["float", "exotic"]
    what: str
    body: Any
    line: int = field(default=0, compare=False)


Entry = Encoding | UnsupportedEntry


@dataclass(frozen=True)
class AimetFile:
    """An encodings file.

    Attributes:
        version: as written; '' when the file has none (overrides written by hand, 0.x form).
        entries: in file order, activations before parameters.
        rest: every other key of the file.
    """

    version: str
    entries: tuple[Entry, ...]
    rest: Mapping[str, Any] = field(default_factory=dict)


_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


class EncodingMismatchError(Exception):
    """An entry that becomes no point.

    Attributes:
        code: of the pitfall.
        seen: the values.
    """

    def __init__(self, code: str, seen: str) -> None:
        super().__init__(code, seen)
        self.code, self.seen = code, seen


def normalised(entry: Encoding) -> Encoding:
    """The entry with offsets that agree with its min and max.

    Raises:
        EncodingMismatchError: AVQ-Q51, scale and offset describe another grid than min and max.
    """
    if entry.limits is None:
        if any(offset > 0 for offset in entry.offset):
            raise EncodingMismatchError("AVQ-Q51", f"offset {max(entry.offset)} without min")
        return entry
    channels = zip(entry.scale, entry.offset, entry.limits, strict=True)
    return replace(entry, offset=tuple(_offset(entry, s, o, low, high) for s, o, (low, high) in channels))


def _offset(entry: Encoding, scale: float, offset: int, low: float, high: float) -> int:
    levels = (1 << entry.bits) - 1
    usable = scale > 0
    steps = (high - low) / scale if usable else levels
    if abs(steps - levels) > 0.5 and not (entry.symmetric and abs(steps - levels + 1) <= 0.5):
        raise EncodingMismatchError(
            "AVQ-Q51", f"scale {scale:.6g} spans {scale * levels:.6g}, min and max {high - low:.6g}"
        )
    from_min = round(low / scale) if usable else offset
    if offset > 0 or from_min == offset:
        return from_min
    raise EncodingMismatchError("AVQ-Q51", f"offset {offset}, min / scale {from_min}")


def point(entry: Encoding, edge: Edge, scale: F32, offset: I64, axis: int | None) -> QuantPoint:
    """The point of a normalised entry.

    Args:
        entry: its width and symmetry.
        edge: of the plan.
        scale: () or (C,) or one per block, float32, see `QuantPoint`.
        offset: the same shape, int64.
        axis: channel or block axis; None per tensor.

    Returns:
        The point.

    Raises:
        EncodingMismatchError: AVQ-Q53, a scale is not a positive normal number;
            AVQ-Q55, a plan cannot express the grid.
    """
    if not np.all(np.isfinite(scale) & (scale >= _SMALLEST_NORMAL)):
        raise EncodingMismatchError("AVQ-Q53", f"scale {float(np.min(scale)):.6g}")
    if not 2 <= entry.bits <= 16:
        raise EncodingMismatchError("AVQ-Q55", f"{entry.bits} bits")
    half = 1 << (entry.bits - 1)
    narrow = entry.symmetric and bool(np.all(offset == 1 - half))
    signed = narrow or entry.signed
    zero_point = np.zeros_like(offset) if narrow else -offset - (half if signed else 0)
    low = -half if signed else 0
    if np.any(zero_point < low) or np.any(zero_point > low + 2 * half - 1):
        raise EncodingMismatchError(
            "AVQ-Q55", f"offset {int(offset.min())} to {int(offset.max())} on {entry.bits} bits"
        )
    return QuantPoint(
        edge,
        scale,
        zero_point,
        axis=axis,
        block_size=entry.block_size,
        bits=entry.bits,
        signed=signed,
        narrow=narrow,
    )


def encoding(point: QuantPoint, role: Role) -> Encoding:
    """The entry of ``point``, which the caller has checked (see `write`)."""
    half = 1 << (point.bits - 1)
    lowest = half - 1 if point.narrow else half if point.signed else 0
    blocks = point.block_size is not None
    return Encoding(
        point.edge.tensor,
        role,
        point.bits,
        tuple(float(value) for value in np.ravel(point.scale)),
        tuple(-int(value) - lowest for value in np.ravel(point.zero_point)),
        symmetric=point.symmetric,
        signed=point.signed,
        layout="block" if blocks else "channel" if point.scale.ndim else "tensor",
        axis=point.axis if point.scale.ndim else None,
        block_size=point.block_size,
        shape=point.scale.shape,
    )
