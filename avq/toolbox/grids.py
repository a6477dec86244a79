"""Integer grids from clipping ranges and weights: x ~ scale * (q - zero_point)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from avq.types import F32, F64, AnyArray, Edge, QuantPoint, Range

# Smallest scale written: 1 / (127 * scale) must still be a normal float32 in every runtime.
_SMALLEST_SCALE = 1e-12
# Clipping weights gains accuracy up to this many bits.
_FEW_BITS = 6
# Scales tried, as shares of the one that clips nothing.
_SHARES = np.linspace(1.0, 0.2, 81)

WeightMethod = Literal["auto", "minmax", "mse"]


def activation_point(edge: Edge, clip: Range, *, bits: int = 8, symmetric: bool = True) -> QuantPoint:
    """Return a per-tensor point whose grid covers ``clip`` and represents zero exactly.

    Args:
        edge: the activation edge.
        clip: real range; ``symmetric`` uses its larger end on both sides.
        bits: bits of the grid, 2..16.
        symmetric: signed grid around zero (every target); otherwise an unsigned grid with a zero point (CPU).

    Returns:
        A point with scale and zero point of shape ().
    """
    if symmetric:
        scale = clip.threshold / ((1 << (bits - 1)) - 1)
        return _point(edge, scale, 0, bits=bits, signed=True)
    levels = (1 << bits) - 1
    low, high = min(clip.low, 0.0), max(clip.high, 0.0)
    scale = (high - low) / levels
    zero_point = int(np.clip(np.rint(-low / max(scale, _SMALLEST_SCALE)), 0, levels))
    return _point(edge, scale, zero_point, bits=bits, signed=False)


def _point(edge: Edge, scale: float, zero_point: int, *, bits: int, signed: bool) -> QuantPoint:
    return QuantPoint(
        edge,
        np.asarray(max(scale, _SMALLEST_SCALE), np.float32),
        np.asarray(zero_point, np.int64),
        bits=bits,
        signed=signed,
    )


def weight_point(
    edge: Edge, weight: AnyArray, axis: int | None, *, bits: int = 8, method: WeightMethod = "auto"
) -> QuantPoint:
    """Return a symmetric point for a constant, with one scale per channel of ``axis``.

    A channel of zeros gets the scale of a channel a million times smaller than the largest: any positive scale fits
    it, but runtimes refuse zero.

    Args:
        edge: edge of the constant.
        weight: its value, any shape and float dtype.
        axis: channel axis; None for one scale for the whole tensor.
        bits: 1..16; one bit means the levels -1 and +1.
        method: "minmax" takes the largest magnitude; "mse" the scale with the least squared error of those
            tried; "auto" is minmax from 7 bits, where clipping gains nothing, and mse below.

    Returns:
        A point with scale (C,) float32 along ``axis``, or () without one, and zero points of 0.
    """
    rows = _rows(weight, axis)
    peak = np.abs(rows).max(axis=1, initial=0.0)
    floor = max(float(peak.max(initial=0.0)) * 1e-6, _SMALLEST_SCALE * 127)
    few = method == "mse" or (method == "auto" and bits <= _FEW_BITS)
    scale = np.maximum(peak, floor) / max((1 << (bits - 1)) - 1, 1)
    if few and rows.size:
        scale = np.maximum(_least_squares(rows, scale, bits), floor / 127)
    scales = (scale if axis is not None else scale[0]).astype(np.float32)
    return QuantPoint(edge, np.asarray(scales), np.zeros(scales.shape, np.int64), axis=axis, bits=bits)


def _rows(weight: AnyArray, axis: int | None) -> F64:
    """(channels, values of one channel) float64; one row in all without an axis."""
    if axis is None:
        return weight.astype(np.float64).reshape(1, -1)
    return np.moveaxis(weight, axis, 0).astype(np.float64).reshape(weight.shape[axis], -1)


def _least_squares(rows: F64, largest: F64, bits: int) -> F64:
    """Per row the scale whose grid is nearest to its values; ``largest`` clips none."""
    if bits == 1:
        magnitudes: F64 = np.abs(rows).mean(axis=1)
        return magnitudes
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    best, best_error = largest, np.full(largest.shape, np.inf)
    for share in _SHARES:  # from no clipping down, so that a tie keeps the wider grid
        scale = largest * share
        grid = np.clip(np.rint(rows / scale[:, None]), low, high)
        error = np.square(grid * scale[:, None] - rows).sum(axis=1)
        best = np.where(error < best_error, scale, best)
        best_error = np.minimum(error, best_error)
    return best


def quantize(values: AnyArray, point: QuantPoint) -> AnyArray:
    """Quantize real numbers: round half to even, saturating. One bit keeps the sign, +1 for zero.

    Args:
        values: real numbers, of the shape of the edge's tensor.
        point: the grid.

    Returns:
        The integers, int64, of the shape of ``values``.
    """
    if point.bits == 1:
        return np.where(values >= 0, 1, -1).astype(np.int64)
    grid = np.rint(values.astype(np.float32) / spread(point.scale, values.shape, point))
    shifted = grid + spread(point.zero_point, values.shape, point)
    integers: AnyArray = np.clip(shifted, point.qmin, point.qmax).astype(np.int64)
    return integers


def dequantize(integers: AnyArray, point: QuantPoint) -> F32:
    """Return the real numbers of grid integers; quantizing them again gives the same integers.

    Args:
        integers: levels of the grid, of the shape of the edge's tensor.
        point: the grid.

    Returns:
        float32, of the shape of ``integers``.
    """
    zero_point = spread(point.zero_point, integers.shape, point)
    real: F32 = ((integers - zero_point) * spread(point.scale, integers.shape, point)).astype(np.float32)
    return real


def spread(parameters: AnyArray, shape: tuple[int, ...], point: QuantPoint) -> AnyArray:
    """Return scales or zero points of ``point``, shaped to broadcast against an array of ``shape``."""
    if point.axis is None:
        return parameters
    return spread_along(parameters, shape, point.axis, point.block_size)


def spread_along(
    parameters: AnyArray, shape: tuple[int, ...], axis: int, block_size: int | None = None
) -> AnyArray:
    """Shape scales or zero points along one axis to broadcast against an array of ``shape``.

    Args:
        parameters: () for one value, (C,) per channel, or one per block in an array of the rank of ``shape``.
        shape: of the array that they quantize.
        axis: channel or block axis; negative ones count from the end.
        block_size: elements per parameter along ``axis``; None for one per channel.

    Returns:
        ``parameters`` reshaped or repeated; unchanged when there is one value.
    """
    if parameters.ndim == 0:
        return parameters
    axis %= len(shape)
    if block_size:
        return np.repeat(parameters, block_size, axis).take(range(shape[axis]), axis)
    return parameters.reshape([-1 if i == axis else 1 for i in range(len(shape))])


# Options that every strategy with calibrated ranges has.


class GridOptions(BaseModel):
    """Options for the choice of activation ranges and their grids."""

    model_config = ConfigDict(extra="forbid")

    calibrator: Literal["auto", "entropy", "mse", "percentile", "minmax"] = Field(
        "auto", description="how activation ranges are chosen; auto scores all four and keeps the best"
    )
    activations: Literal["auto", "symmetric", "asymmetric"] = Field(
        "auto", description="grid of activations; auto is asymmetric on CPU targets, symmetric elsewhere"
    )

    def symmetric(self, *, symmetric_only: bool) -> bool:
        """Return True when activation grids are signed around zero.

        Args:
            symmetric_only: the target takes no other grid.
        """
        return self.activations == "symmetric" or (self.activations == "auto" and symmetric_only)


class RangingOptions(GridOptions):
    """Options for ranges with one percentile; strategies add their own fields."""

    percentile: float = Field(
        99.99, gt=50.0, le=100.0, description="percent of values kept by calibrator=percentile"
    )
