"""One integer grid as a foreign file means it, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avq.toolbox.grids import spread_along
from avq.types import F32, I64, AnyArray, Edge, QuantPoint
from avq.types.plan import Rounding


@dataclass(frozen=True, eq=False)
class Grid:
    """x ~ scale * (q - zero_point), q integers; the fields are those of ``QuantPoint``."""

    scale: F32
    zero_point: I64
    axis: int | None = None
    block_size: int | None = None
    bits: int = 8
    signed: bool = True
    narrow: bool = False
    rounding: Rounding = "half_even"

    def point(self, edge: Edge) -> QuantPoint:
        """The same for one edge of the float graph."""
        return QuantPoint(
            edge,
            self.scale,
            self.zero_point,
            axis=self.axis,
            block_size=self.block_size,
            bits=self.bits,
            signed=self.signed,
            narrow=self.narrow,
            rounding=self.rounding,
        )

    @property
    def key(self) -> object:
        """Equal for grids that do the same to every tensor."""
        return (
            (self.axis, self.block_size, self.bits, self.signed, self.narrow, self.rounding),
            (self.scale.shape, self.scale.tobytes(), self.zero_point.tobytes()),
        )

    @property
    def qmin(self) -> int:
        low = -(1 << (self.bits - 1)) if self.signed else 0
        return low + 1 if self.narrow else low

    @property
    def qmax(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1


def make_grid(scale: AnyArray, zero_point: AnyArray, *, axis: int | None = None, **fields: object) -> Grid:
    """A grid from arrays of any float and integer type; one-element arrays are per-tensor.

    ``zero_point`` is spread over the scales. A grid per channel that has one channel is per tensor.
    """
    scale = np.asarray(scale).astype(np.float32)
    zero_point = np.asarray(zero_point).astype(np.int64)
    if scale.size == 1 and not fields.get("block_size"):
        scale, zero_point, axis = scale.reshape(()), zero_point.reshape(()), None
    zero_point = np.array(np.broadcast_to(zero_point, scale.shape))
    return Grid(scale, zero_point, axis if scale.ndim else None, **fields)  # type: ignore[arg-type]


def width_of(low: int, high: int) -> tuple[int, bool, bool] | None:
    """(bits, signed, narrow) of the integers low..high; None when they are no grid."""
    for bits in range(2, 17):
        half = 1 << (bits - 1)
        for narrow in (False, True):
            if (low, high) == (-half + narrow, half - 1):
                return bits, True, narrow
            if (low, high) == (0 + narrow, 2 * half - 1):
                return bits, False, narrow
    return None


def dequantize(integers: AnyArray, grid: Grid) -> F32:
    """Real values of stored integers: (q - zero_point) in float32, times the scale."""
    scale, zero_point = grid.scale, grid.zero_point
    if grid.axis is not None:
        scale, zero_point = (
            spread_along(part, integers.shape, grid.axis, grid.block_size) for part in (scale, zero_point)
        )
    steps = (integers.astype(np.int64) - zero_point).astype(np.float32)
    return np.asarray(steps * scale, np.float32)


def fits(grid: Grid, shape: tuple[int, ...] | None) -> bool:
    """Whether the scales lie along an axis of a tensor of ``shape`` (None: unknown)."""
    if grid.axis is None:
        return True
    if shape is None:
        return grid.scale.ndim == 1 or grid.block_size is not None
    if not -len(shape) <= grid.axis < len(shape):
        return False
    size = shape[grid.axis]
    if grid.block_size:
        wanted = tuple(
            -(-n // grid.block_size) if i == grid.axis % len(shape) else n for i, n in enumerate(shape)
        )
        return grid.scale.shape == wanted
    return grid.scale.ndim == 1 and size in (-1, grid.scale.size)
