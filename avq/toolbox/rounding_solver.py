"""The rounding of one layer's weights with the least squared output error, given its Gram matrix."""

from __future__ import annotations

from contextlib import AbstractContextManager

import numpy as np

from avq.types import F64, I64, AnyArray

#: Added to the diagonal, in units of its mean: unseen directions must not decide (GPTQ's damping).
_DAMPING = 0.01
#: Rounds of coordinate descent; most layers stand still after three.
_SWEEPS = 4
#: Inputs decided before the rest hears of it, in one matrix product.
_BLOCK = 64


def one_blas_thread() -> AbstractContextManager[object]:
    """Sums in one order on every machine, and no threads that wait for each other on a busy one."""
    from threadpoolctl import threadpool_limits

    limit: AbstractContextManager[object] = threadpool_limits(1, "blas")
    return limit


def output_error(deviation: F64, gram: F64) -> F64:
    """d G d^T per output channel: (G, R, K) deviations and (G, K, K) matrices give (G, R)."""
    error: F64 = np.multiply(deviation @ gram, deviation).sum(axis=2)
    return error


def solve(weights: F64, scale: F64, zero_point: I64, nearest: I64, levels: tuple[I64, I64], gram: F64) -> I64:
    """Integers (G, R, K), each one of its two neighbouring levels, with a small output error.

    No channel ends with a larger error, damping included, than by rounding to nearest.

    Args:
        weights: (G, R, K) real values.
        scale, zero_point: (G, R, K), of every weight.
        nearest: (G, R, K) the integers of rounding to nearest.
        levels: the level below and the level above every weight; equal where the grid ends.
        gram: (G, K, K) E[x x^T].
    """
    damped = _damped(gram)
    down, up = ((level - zero_point) * scale for level in levels)
    chosen = _descend(_eliminate(weights, down, up, damped), weights, down, up, damped)
    error = output_error(np.where(chosen, up, down) - weights, damped)
    error_of_nearest = output_error((nearest - zero_point) * scale - weights, damped)
    better = (error < error_of_nearest)[:, :, None]
    solved: I64 = np.where(better, np.where(chosen, levels[1], levels[0]), nearest)
    return solved


def _damped(gram: F64) -> F64:
    size = gram.shape[-1]
    mean = np.trace(gram, axis1=1, axis2=2) / size
    extra = np.where(mean > 0, _DAMPING * mean, 1.0)
    damped: F64 = gram + extra[:, None, None] * np.eye(size)
    return damped


def _eliminate(weights: F64, down: F64, up: F64, gram: F64) -> AnyArray:
    """Round one input after the other and let those behind it make up for the error: GPTQ."""
    size = gram.shape[-1]
    factor = np.linalg.cholesky(np.linalg.inv(gram)).transpose(0, 2, 1)  # upper: G^-1 = U^T U
    left = weights.copy()
    chosen: AnyArray = np.zeros(weights.shape, bool)
    for start in range(0, size, _BLOCK):
        end = min(start + _BLOCK, size)
        errors = np.zeros((*weights.shape[:2], end - start))
        for k in range(start, end):
            here = left[:, :, k]
            chosen[:, :, k] = np.abs(up[:, :, k] - here) < np.abs(down[:, :, k] - here)
            real = np.where(chosen[:, :, k], up[:, :, k], down[:, :, k])
            error = (here - real) / factor[:, None, k, k]
            left[:, :, k + 1 : end] -= error[:, :, None] * factor[:, None, k, k + 1 : end]
            errors[:, :, k - start] = error
        left[:, :, end:] -= errors @ factor[:, start:end, end:]
    return chosen


def _descend(start: AnyArray, weights: F64, down: F64, up: F64, gram: F64) -> AnyArray:
    """Move single weights to their other level while that lowers the error."""
    chosen: AnyArray = start.copy()
    slopes = (np.where(chosen, up, down) - weights) @ gram
    for _ in range(_SWEEPS):
        before = chosen.copy()
        for first in range(0, gram.shape[-1], _BLOCK):
            block = slice(first, min(first + _BLOCK, gram.shape[-1]))
            steps = _descend_block(
                chosen[:, :, block], (up - down)[:, :, block], slopes[:, :, block], gram[:, block, block]
            )
            slopes += steps @ gram[:, block, :]
        if np.array_equal(before, chosen):
            break
    return chosen


def _descend_block(chosen: AnyArray, gaps: F64, slopes: F64, gram: F64) -> F64:
    """One sweep over neighbouring inputs, ``chosen`` changed in place; what every weight was moved by."""
    local = slopes.copy()
    steps = np.zeros(gaps.shape)
    for k in range(gram.shape[-1]):
        step = np.where(chosen[:, :, k], -gaps[:, :, k], gaps[:, :, k])
        gain = step * (2.0 * local[:, :, k] + step * gram[:, None, k, k])
        move = gain < 0
        chosen[:, :, k] ^= move
        steps[:, :, k] = np.where(move, step, 0.0)
        local += steps[:, :, k, None] * gram[:, None, k, :]
    return steps
