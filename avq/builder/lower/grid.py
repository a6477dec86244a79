"""From a planned point to integers in a file: storage type, offset, and the rounding of constants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from avq.errors import PlanError, RequestError, nearest
from avq.types import F32, AnyArray, QuantizationPlan, QuantPoint

Encoding = Literal["s8", "u8", "asymmetric"]
ENCODINGS: tuple[Encoding, ...] = ("s8", "u8", "asymmetric")

_ROUND: dict[str, Callable[[AnyArray], AnyArray]] = {
    "half_even": np.rint,
    "half_up": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
    "toward_zero": np.trunc,
}


@dataclass(frozen=True, slots=True)
class Grid:
    """How a point's integers are stored.

    Attributes:
        dtype: "int8", "uint8", "int16", "uint16", "int4" or "uint4".
        offset: added to every planned integer and zero point; moves a signed grid into unsigned storage.
    """

    dtype: str
    offset: int


def check_encoding(plan: QuantizationPlan, encoding: str) -> Encoding:
    """``encoding`` itself; RequestError for an unknown one, PlanError naming the points it cannot express."""
    known = next((name for name in ENCODINGS if name == encoding), None)
    if known is None:
        raise RequestError(f"there is no encoding '{encoding}'", fix=nearest(encoding, ENCODINGS))
    if known == "asymmetric":
        return known
    crooked = sorted(str(p.edge) for p in plan.points if not p.symmetric or p.mode == "dynamic")
    if crooked:
        raise PlanError(
            f"{len(crooked)} points are not symmetric, encoding {encoding} cannot write them",
            seen=", ".join(crooked[:6]) + (" ..." if len(crooked) > 6 else ""),
            fix="plan static signed grids with zero point 0, or lower for a CPU target as 'asymmetric'",
        )
    return known


def activation_grid(point: QuantPoint, encoding: Encoding) -> Grid:
    """Storage of an activation: signed grids go into unsigned bytes, offset 128, unless asked for s8.

    Grids below 8 bits keep 8-bit storage; the writer clips in float before Q, so only their levels occur.
    """
    width = 8 if point.bits <= 8 else 16
    if encoding == "s8":
        return Grid(f"int{width}", 0)
    return Grid(f"uint{width}", 1 << (width - 1) if point.signed else 0)


def constant_grid(point: QuantPoint) -> Grid:
    """Storage of a constant: as planned; four-bit weight-only points are INT4, others use 8 or 16 bits.

    ``packed`` points come as 8 or 16 bits out of the unpacking.
    """
    width = 4 if point.native_int4 else 8 if point.bits <= 8 else 16
    return Grid(f"int{width}" if point.signed else f"uint{width}", 0)


def quantize_constant(array: AnyArray, point: QuantPoint) -> AnyArray:
    """Planned integers of a constant, int32, in the array's shape.

    Division in float32, as QuantizeLinear does it; then the point's rounding, zero point and clipping. One bit
    keeps the sign, +1 for zero.
    """
    scale = spread(point.scale, array.shape, point)
    if point.bits == 1:
        return np.where(array >= 0, 1, -1).astype(np.int32)
    zero_point = spread(point.zero_point, array.shape, point)
    steps = _ROUND[point.rounding](array.astype(np.float32) / scale) + zero_point
    integers: AnyArray = np.clip(steps, point.qmin, point.qmax).astype(np.int32)
    return integers


def spread(values: AnyArray, shape: tuple[int, ...], point: QuantPoint) -> AnyArray:
    """Scales or zero points, repeated so that they broadcast against an array of ``shape``."""
    if values.ndim == 0:
        return values
    axis = _axis(point, len(shape))
    if point.block_size:
        wanted = tuple(-(-n // point.block_size) if i == axis else n for i, n in enumerate(shape))
        _same_shape(values, wanted, point)
        return np.repeat(values, point.block_size, axis).take(range(shape[axis]), axis)
    _same_shape(values, (shape[axis],), point)
    return values.reshape([-1 if i == axis else 1 for i in range(len(shape))])


def real_range(point: QuantPoint) -> tuple[F32, F32]:
    """(lowest, highest) real number of the grid, float32, in the shape of the scale."""
    low = (point.qmin - point.zero_point) * point.scale.astype(np.float64)
    high = (point.qmax - point.zero_point) * point.scale.astype(np.float64)
    return low.astype(np.float32), high.astype(np.float32)


def _axis(point: QuantPoint, rank: int) -> int:
    axis = 1 if point.axis is None else point.axis
    if not -rank <= axis < rank:
        raise PlanError(
            f"axis {axis} of {point.edge} is outside its tensor",
            seen=f"rank {rank}",
            fix="name the channel axis",
        )
    return axis % rank


def _same_shape(values: AnyArray, wanted: tuple[int, ...], point: QuantPoint) -> None:
    if values.shape != wanted:
        raise PlanError(
            f"{point.edge} has the wrong number of scales",
            seen=f"{values.shape}, wanted {wanted} along axis {point.axis}",
            fix="give one scale per channel or block of that axis",
        )
