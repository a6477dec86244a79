"""Grids of few bits for weights: the scale with the least squared error, per channel."""

from __future__ import annotations

import numpy as np

from avq.toolbox import weight_point
from avq.types import F64, AnyArray, Edge, QuantPoint

# Clipping thresholds tried, as shares of the largest magnitude: few levels want to clip, 8 bits do not.
_SHARES = np.concatenate([np.linspace(0.15, 1.0, 52), [1.06, 1.12]])


def fitted_point(edge: Edge, weight: AnyArray, axis: int | None, bits: int) -> QuantPoint:
    """A symmetric point of ``bits`` bits whose scales leave the least squared error.

    Args:
        edge: where.
        weight: the constant.
        axis: output-channel axis; None for one scale.
        bits: 1 to 8. One bit: -scale and +scale, best at the mean magnitude of the channel.
    """
    widest = weight_point(edge, weight, axis, bits=bits)
    if bits >= 8:
        return widest
    rows = _rows(weight, axis)
    peak: F64 = np.ravel(widest.scale).astype(np.float64)
    best = np.maximum(np.abs(rows).mean(axis=1), 1e-6 * peak) if bits == 1 else _searched(rows, peak, widest)
    scale = best.astype(np.float32).reshape(widest.scale.shape)
    return QuantPoint(edge, scale, widest.zero_point, axis=axis, bits=bits)


def _searched(rows: F64, peak: F64, point: QuantPoint) -> F64:
    best, least = np.array(peak, np.float64), np.full(len(rows), np.inf)
    for share in _SHARES:
        scale = (share * peak)[:, None]
        error = ((np.clip(np.rint(rows / scale), point.qmin, point.qmax) * scale - rows) ** 2).sum(axis=1)
        better = error < least
        best[better], least[better] = share * peak[better], error[better]
    return best


def squared_error(weight: AnyArray, point: QuantPoint) -> float:
    """Sum of the squared differences that ``point`` makes."""
    rows, scale = _rows(weight, point.axis), np.ravel(point.scale).astype(np.float64)[:, None]
    if point.bits == 1:
        levels = np.where(rows >= 0, 1.0, -1.0)
    else:
        levels = np.clip(np.rint(rows / scale), point.qmin, point.qmax)
    return float(((levels * scale - rows) ** 2).sum())


def _rows(weight: AnyArray, axis: int | None) -> F64:
    """One row per scale, (scales, weights) float64."""
    if axis is None:
        return weight.astype(np.float64).reshape(1, -1)
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)
