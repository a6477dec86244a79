"""One-sided limits of a share of lost boxes, and of a mean, for boxes that come in pictures.

Boxes of one picture are not independent: fog or a blurred lens loses several at once. Two methods are combined, and
the wider one counts: the exact limits of a binomial share (C. Clopper, E. Pearson, Biometrika 26, 1934) on the boxes
that the pictures are worth, and a percentile bootstrap over pictures (B. Efron, R. Tibshirani, "An Introduction to
the Bootstrap", 1993, ch. 13). The exact one holds where nothing is lost, the bootstrap where losses come in groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from avq.types import F64, I64

#: Share of cases in which a true value lies beyond a limit; each limit is one-sided.
MISSED = 0.05
#: Correlation of the losses within a picture beyond the first boxes: what few losses cannot show yet.
WITHIN_PICTURE = 0.08
#: Boxes of one picture that count as independent.
INDEPENDENT = 4.5
RESAMPLES = 1000
#: Percentile limits of a share so skewed miss too often: by simulation this part of the error keeps it.
_SKEWED = 0.4
_SEED = 20240501  # any fixed number: the same boxes give the same limits
_STEPS = 50

Numbers = Sequence[float] | Sequence[int] | npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Bounds:
    """A measured value with its lower and upper one-sided limits."""

    value: float
    low: float
    high: float


def share_limits(
    lost: Numbers, boxes: Numbers, *, missed: float = MISSED, resamples: int = RESAMPLES
) -> Bounds:
    """Return the share of lost boxes, 0..1, with its limits.

    Args:
        lost: lost boxes, per picture.
        boxes: all boxes, per picture, at least one in total.
        missed: share of cases in which the true share is above the upper limit.
        resamples: draws of the bootstrap.
    """
    k, n = np.asarray(lost, np.float64), np.asarray(boxes, np.float64)
    share, worth = float(k.sum() / n.sum()), independent_boxes(n)
    exact = exact_limits(share, worth, missed=missed)
    if n.max() <= 1.0:
        return exact  # boxes of different pictures are independent
    drawn = ratio_limits(k, n, missed=_SKEWED * missed, resamples=resamples)
    half = 0.5 / float(n.sum())  # shares come in steps of one box: the quantile lies within half a step
    low, high = min(drawn.low + half, share), max(drawn.high - half, share)
    return Bounds(share, min(exact.low, low), max(exact.high, high))


def independent_boxes(boxes: Numbers) -> float:
    """Return the number of independent boxes that these pictures are worth, at most their sum.

    The design effect 1 + (m - 1) rho of cluster samples (L. Kish, "Survey Sampling", 1965, ch. 5) with the mean m of
    boxes of a box's picture; boxes up to ``INDEPENDENT`` a picture count in full.
    """
    n = np.asarray(boxes, np.float64)
    total = float(n.sum())
    if total <= 0.0:
        return 0.0
    together = float((n * n).sum()) / total
    return total / (1.0 + WITHIN_PICTURE * max(0.0, together - INDEPENDENT))


def exact_limits(share: float, boxes: float, *, missed: float = MISSED) -> Bounds:
    """Return the Clopper-Pearson limits of ``share`` of independent ``boxes``; parts of boxes widen them."""
    n = math.floor(boxes + 1e-9)
    if n < 1:
        return Bounds(share, 0.0, 1.0)
    fewest, most = math.floor(share * n + 1e-9), min(math.ceil(share * n - 1e-9), n)
    return Bounds(share, _lower(fewest, n), _upper(most, n, missed))


def ratio_limits(
    numerators: Numbers, denominators: Numbers, *, missed: float = MISSED, resamples: int = RESAMPLES
) -> Bounds:
    """Return sum(numerators) / sum(denominators) with bootstrap limits: pictures are drawn with replacement."""
    a, b = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    value = float(a.sum() / b.sum()) if b.sum() else 0.0
    if not a.any():
        return Bounds(value, value, value)
    drawn = _drawn_pictures(len(a), resamples)
    above, below = a[drawn].sum(axis=1), b[drawn].sum(axis=1)
    ratios = above[below > 0.0] / below[below > 0.0]
    low, high = np.quantile(ratios, [MISSED, 1.0 - missed]) if ratios.size else (-math.inf, math.inf)
    return Bounds(value, float(low), float(high))


def picture_draws(pictures: int, resamples: int = RESAMPLES) -> F64:
    """Return (resamples, pictures) float64: how often each picture was drawn, from a fixed seed."""
    rows = _drawn_pictures(pictures, resamples)
    return np.stack([np.bincount(row, minlength=pictures) for row in rows]).astype(np.float64)


def _drawn_pictures(pictures: int, resamples: int) -> I64:
    return np.random.default_rng(_SEED).integers(0, pictures, (resamples, pictures))


def _upper(lost: int, boxes: int, missed: float) -> float:
    """Return the largest share at which ``lost`` or fewer of ``boxes`` still happen in ``missed`` of all cases."""
    if lost >= boxes:
        return 1.0
    low, high = lost / boxes, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _at_most(lost, boxes, middle) > missed else (low, middle)
    return high


def _lower(lost: int, boxes: int) -> float:
    """Return the smallest share at which ``lost`` or more of ``boxes`` happen in ``MISSED`` of all cases."""
    if lost <= 0:
        return 0.0
    low, high = 0.0, lost / boxes
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        low, high = (low, middle) if 1.0 - _at_most(lost - 1, boxes, middle) > MISSED else (middle, high)
    return low


def _at_most(lost: int, boxes: int, share: float) -> float:
    """Return the binomial probability of at most ``lost`` of ``boxes``."""
    if share <= 0.0:
        return 1.0
    i = np.arange(1, lost + 1, dtype=np.float64)
    ways = np.concatenate([[0.0], np.cumsum(np.log((boxes - i + 1.0) / i))])
    counts = np.arange(lost + 1, dtype=np.float64)
    logs = ways + counts * math.log(share) + (boxes - counts) * math.log1p(-share)
    return min(1.0, float(np.exp(logs).sum()))
