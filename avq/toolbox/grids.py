"""From clipping ranges to integer grids: x ~ scale * (q - zero_point)."""

from __future__ import annotations

import numpy as np

from avq.types import AnyArray, Edge, QuantPoint, Range

# Smallest scale written: 1 / (127 * scale) must still be a normal float32 in every runtime.
_SMALLEST_SCALE = 1e-12


def activation_point(edge: Edge, clip: Range, *, bits: int = 8, symmetric: bool = True) -> QuantPoint:
    """A per-tensor point whose grid covers ``clip`` and holds zero exactly.

    Args:
        edge: the activation edge.
        clip: real range; ``symmetric`` uses its larger end on both sides.
        bits: grid width.
        symmetric: signed grid around zero (every target); otherwise an unsigned grid with a zero point (CPU).
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


def weight_point(edge: Edge, weight: AnyArray, axis: int | None, *, bits: int = 8) -> QuantPoint:
    """A symmetric point for a constant: one scale per channel of ``axis``, from the largest magnitude.

    A channel of zeros gets the scale of a channel a million times smaller than the largest: any positive
    scale is right for it, but runtimes refuse zero.
    """
    magnitude = np.abs(weight.astype(np.float64))
    if axis is None:
        peak = np.asarray(magnitude.max(initial=0.0))
    else:
        others = tuple(i for i in range(weight.ndim) if i != axis)
        peak = magnitude.max(axis=others, initial=0.0)
    floor = max(float(peak.max(initial=0.0)) * 1e-6, _SMALLEST_SCALE * 127)
    scale = (np.maximum(peak, floor) / max((1 << (bits - 1)) - 1, 1)).astype(np.float32)
    return QuantPoint(edge, scale, np.zeros(scale.shape, np.int64), axis=axis, bits=bits)


def quantize(values: AnyArray, point: QuantPoint) -> AnyArray:
    """The integers (int64) that ``point`` turns ``values`` into; round half to even, saturating.

    One bit keeps the sign, +1 for zero.
    """
    if point.bits == 1:
        return np.where(values >= 0, 1, -1).astype(np.int64)
    shape = [1] * values.ndim
    if point.axis is not None:
        shape[point.axis] = -1
    scale = point.scale.reshape(shape) if point.axis is not None else point.scale
    zero = point.zero_point.reshape(shape) if point.axis is not None else point.zero_point
    grid = np.rint(values.astype(np.float32) / scale) + zero
    integers: AnyArray = np.clip(grid, point.qmin, point.qmax).astype(np.int64)
    return integers
