"""The rounding of one layer's weights with the least squared output error, given its Gram matrix."""

from __future__ import annotations

import numpy as np

from avq.types import F64, I64, AnyArray

#: Added to the diagonal, in units of its mean: unseen directions must not decide (GPTQ's damping).
_DAMPING = 0.01
#: Rounds of coordinate descent; most layers stand still after two.
_SWEEPS = 4


def output_error(deviation: F64, gram: F64) -> F64:
    """d G d^T per output channel: (G, R, K) deviations and (G, K, K) matrices give (G, R)."""
    error: F64 = np.einsum("grk,grk->gr", deviation @ gram, deviation)
    return error


def solve(weights: F64, scale: F64, zero_point: I64, nearest: I64, levels: tuple[I64, I64], gram: F64) -> I64:
    """Integers (G, R, K), each one of its two neighbouring levels, with a small output error.

    No channel ends with a larger error than by rounding to nearest.

    Args:
        weights: (G, R, K) real values.
        scale, zero_point: (G, R, K), of every weight.
        nearest: (G, R, K) the integers of rounding to nearest.
        levels: the level below and the level above every weight; equal where the grid ends.
        gram: (G, K, K) E[x x^T].
    """
    damped = _damped(gram)
    down, up = ((level - zero_point) * scale for level in levels)
    eliminated = _eliminate(weights, down, up, damped)
    tried = [_descend(start, weights, down, up, damped) for start in (eliminated, (nearest == levels[1]))]
    reals = [np.where(chosen, up, down) - weights for chosen in tried]
    errors = [output_error(real, damped) for real in reals]
    errors.append(output_error((nearest - zero_point) * scale - weights, damped))
    candidates = [np.where(chosen, levels[1], levels[0]) for chosen in tried]
    best = np.argmin([errors[2], errors[0], errors[1]], axis=0)  # a tie keeps the nearest
    solved: I64 = np.choose(best[:, :, None], [nearest, *candidates])
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
    for k in range(size):
        here = left[:, :, k]
        chosen[:, :, k] = np.abs(up[:, :, k] - here) < np.abs(down[:, :, k] - here)
        real = np.where(chosen[:, :, k], up[:, :, k], down[:, :, k])
        error = (here - real) / factor[:, k, k][:, None]
        if k + 1 < size:
            left[:, :, k + 1 :] -= error[:, :, None] * factor[:, None, k, k + 1 :]
    return chosen


def _descend(start: AnyArray, weights: F64, down: F64, up: F64, gram: F64) -> AnyArray:
    """Move single weights to their other level while that lowers the error."""
    chosen: AnyArray = start.copy()
    slopes = (np.where(chosen, up, down) - weights) @ gram
    for _ in range(_SWEEPS):
        moved = False
        for k in range(gram.shape[-1]):
            step = np.where(chosen[:, :, k], down[:, :, k] - up[:, :, k], up[:, :, k] - down[:, :, k])
            gain = step * (2.0 * slopes[:, :, k] + step * gram[:, k, k][:, None])
            move = gain < 0
            if move.any():
                moved = True
                chosen[:, :, k] ^= move
                slopes += np.where(move, step, 0.0)[:, :, None] * gram[:, None, k, :]
        if not moved:
            break
    return chosen
