"""One entry of an AIMET encodings file, whatever its version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["activation", "param", ""]
Layout = Literal["tensor", "channel", "block"]


@dataclass(frozen=True, slots=True)
class Encoding:
    """An integer grid: x ~ scale * (q + offset) with q from 0 to 2**bits - 1.

    Attributes:
        name: tensor of the ONNX model.
        role: "param" or "activation"; '' where the version does not say (2.x).
        bits: width of the grid.
        scale, offset: one per tensor, per channel or per block (flattened, output channels outermost).
        symmetric: the file calls the grid symmetric; then offset -2**(bits-1) is a signed grid around zero.
        signed: integers are stored signed. Older versions only say symmetric; 2.x says the type.
        layout: what the scales belong to.
        axis: channel or block axis; None where the operator implies it (before 2.x).
        block_size: elements per scale along ``axis`` for blocks.
        shape: how 2.x nests its scales; () for one number.
        limits: (min, max) per scale as 0.x writes them; None where the version has none.
        line: where it stands in its file.
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
class Untaken:
    """An entry that is no plain integer grid: kept as it stands, so that the file can be written again.

    Attributes:
        kind: "float" when the tensor stays in floating point; else "exotic".
        what: what it is, for people.
        body: the entry itself, JSON values.
    """

    name: str
    role: Role
    kind: Literal["float", "exotic"]
    what: str
    body: Any
    line: int = field(default=0, compare=False)


Entry = Encoding | Untaken


@dataclass(frozen=True)
class AimetFile:
    """An encodings file.

    Attributes:
        version: as written; '' when the file has none (overrides written by hand, 0.x form).
        entries: in file order, activations before parameters.
        rest: every other key of the file, kept as it stands.
    """

    version: str
    entries: tuple[Entry, ...]
    rest: Mapping[str, Any] = field(default_factory=dict)
