"""Clipping ranges from counts alone: entropy, mse, percentile, minmax.

Thresholds of |x| are searched at the upper edge of every bin from bin 128 to the bin of the maximum, the last
one clamped to the exact maximum. Entropy is the search of Migacz, "8-bit inference with TensorRT" (GTC 2017);
both searches run over prefix sums, O(candidates x levels), instead of over all bins for every candidate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from avq.builder.calibrate.histogram import BINS, Histogram
from avq.errors import CalibrationError, nearest
from avq.types import CALIBRATORS, F64, I64, Calibrator, Range

#: No threshold below this bin is tried: 1/32 of the range at least is kept.
FIRST_BIN = 128
#: Divergences, and relative errors, that differ by less are ties; the larger threshold wins.
TIE = 1e-12
#: Keeps log(0) finite and changes no other logarithm: an empty level weighs nothing.
_NOTHING = 1e-300
#: Level edges computed at once. Arrays of 64 KB come from the heap; above 128 KB each costs page faults.
_EDGES = 1 << 13


def find_range(
    histogram: Histogram, method: Calibrator, *, bits: int, symmetric: bool, percentile: float
) -> Range:
    """Compute the clipping range of a tensor that held finite values only.

    Args:
        histogram: with at least one value.
        bits: 2..16.
        symmetric: (-t, t), for a signed grid around zero; else (-t, t) cut to the exact minimum and maximum,
            zero always inside. ``mse`` then scores an unsigned grid of 2**bits levels over the cut range.
        percentile: in (0, 100], used by ``percentile``.

    Raises:
        CalibrationError: unknown method, bits or percentile out of range.
    """
    _check(method, bits, percentile)
    if method == "entropy":
        threshold = entropy(histogram, levels=1 << (bits - 1))
    elif method == "mse":
        threshold = mse(histogram, bits=bits) if symmetric else mse_asymmetric(histogram, bits=bits)
    elif method == "percentile":
        threshold = percentile_of(histogram, percentile)
    else:
        threshold = largest(histogram)
    if symmetric:
        return Range(-threshold, threshold)
    low, high = zero_inside(histogram)
    return Range(max(-threshold, low), min(threshold, high))


def largest(histogram: Histogram) -> float:
    """Return the exact maximum of |x|; 0.0 without values."""
    low, high = zero_inside(histogram)
    return max(-low, high)


def zero_inside(histogram: Histogram) -> tuple[float, float]:
    """Return the exact minimum and maximum, widened to contain zero."""
    return min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)


def scale_of(limits: Range, *, bits: int, symmetric: bool) -> float:
    """Return the step of the integer grid over ``limits``; 1.0 for a tensor that was all zero."""
    steps = (1 << (bits - 1)) - 1 if symmetric else (1 << bits) - 1
    span = limits.threshold if symmetric else limits.high - limits.low
    return span / steps if span > 0 else 1.0


def entropy(histogram: Histogram, *, levels: int = 128) -> float:
    """Find the threshold of |x| with the least KL divergence of ``levels`` levels from the counts.

    Exact zeros are left out: quantized exactly by any grid, and a ReLU's spike of them would dominate. Without a
    candidate (a maximum below the first bin, more levels than bins) the exact maximum.
    """
    counts = histogram.magnitude
    candidates = _candidates(counts, levels)
    if candidates.size == 0:
        return largest(histogram)
    divergence = kl_divergences(counts, candidates, levels)
    best = _last_within(divergence, float(divergence.min()) + TIE)
    return _edge(histogram, int(candidates[best]))


def kl_divergences(counts: I64, candidates: I64, levels: int) -> F64:
    """Compute KL(P || Q) of consecutive candidates i.

    Args:
        counts: (n,) int64 counts of |x|.
        candidates: (m,) int64 numbers of bins kept, consecutive.
        levels: levels of the quantized distribution Q.

    Returns:
        (m,) float64; inf where Q is empty and P is not.

    P is the first i bins with all later counts added to bin i - 1; Q is those i bins merged to ``levels``
    levels and spread over each level's non-empty bins. With S the prefix sums of b log b, c and z the counts
    and non-empty bins of a level, o the outliers, l = b[i-1], T all counts and C those of the first i bins:
    KL = (S - l log l + (l+o) log(l+o) - sum c log(c/z) - o log(c/z of the last level)) / T - log T + log C.
    """
    total = int(counts.sum())
    sums = np.concatenate([[0], np.cumsum(counts)]).astype(np.float64)
    filled = np.concatenate([[0], np.cumsum(counts > 0)])
    entropies = np.concatenate([[0.0], np.cumsum(_x_log_x(counts.astype(np.float64)))])
    spread, last_log = np.empty(candidates.size), np.empty(candidates.size)
    rows = max(_EDGES // levels, 1)
    for at in range(0, candidates.size, rows):
        edges = _level_edges(int(candidates[at]), rows, levels)[: candidates.size - at]
        spread[at : at + rows], last_log[at : at + rows] = _spread(sums, filled, edges)
    kept, last = sums[candidates], counts[candidates - 1].astype(np.float64)
    outliers = total - kept
    numerator = entropies[candidates] - _x_log_x(last) + _x_log_x(last + outliers) - spread
    numerator -= np.where(outliers > 0, outliers * last_log, 0.0)
    with np.errstate(divide="ignore"):
        divergence = numerator / total - np.log(total) + np.log(kept)
    return np.where((kept > 0) & ((outliers == 0) | (last > 0)), divergence, np.inf)


def _spread(sums: F64, filled: I64, edges: I64) -> tuple[F64, F64]:
    """Return the sum over levels of c log(c/z), and log(c/z) of the last level, per row of level edges."""
    at_edges = sums.take(edges)
    level_counts = at_edges[:, 1:] - at_edges[:, :-1]
    bins_at_edges = filled.take(edges)
    logs = np.log(level_counts + _NOTHING)
    logs -= _log_table().take(bins_at_edges[:, 1:] - bins_at_edges[:, :-1])
    return np.einsum("ij,ij->i", level_counts, logs), logs[:, -1]


@lru_cache(maxsize=512)
def _level_edges(first: int, rows: int, levels: int) -> I64:
    """Return ceil(k * i / levels) for ``rows`` values of i from ``first`` and k in 0..levels: first bin of a level.

    Rows past the last bin are there too, so that every histogram finds the same few tables in the cache.
    """
    kept = np.arange(first, first + rows, dtype=np.int64)[:, None]
    return -(-kept * np.arange(levels + 1) // levels)


@lru_cache(maxsize=1)
def _log_table() -> F64:
    """Return log(z) for z in 0..BINS, with log(0) as 0: an empty level has no counts to weigh it."""
    return np.log(np.maximum(np.arange(BINS + 1), 1.0))


def _x_log_x(values: F64) -> F64:
    return values * np.log(np.maximum(values, 1.0))


def mse(histogram: Histogram, *, bits: int) -> float:
    """Find the threshold t of |x| with the least squared error on the levels 0, s, ... (2**(bits-1) - 1) s = t.

    Every count stands at the centre of its bin. With more levels than bins, counts cannot separate
    thresholds: the exact maximum then.
    """
    counts = histogram.magnitude
    levels = 1 << (bits - 1)
    candidates = _candidates(counts, 1)
    if candidates.size == 0 or levels > BINS:
        return largest(histogram)
    thresholds = np.minimum(candidates.astype(np.float64), largest(histogram) / histogram.width)
    errors = squared_errors(counts, np.zeros_like(thresholds), thresholds / (levels - 1), levels)
    return _least(histogram, candidates, errors)


def mse_asymmetric(histogram: Histogram, *, bits: int) -> float:
    """Find the threshold of |x| with the least squared error on 2**bits levels over the range it leaves.

    The range is (-t, t) cut to the exact extremes; its zero point is rounded half to even. With more levels
    than bins the exact maximum, as in :func:`mse`.
    """
    candidates = _candidates(histogram.magnitude, 1)
    if candidates.size == 0 or 1 << bits > BINS:
        return largest(histogram)
    low, high = (value / histogram.width for value in zero_inside(histogram))
    thresholds = candidates.astype(np.float64)
    lows, highs = np.maximum(-thresholds, low), np.minimum(thresholds, high)
    scales = (highs - lows) / ((1 << bits) - 1)
    zero_points = np.round(-lows / scales)
    counts = np.concatenate([histogram.negative[::-1], histogram.positive])
    # The axis begins at -BINS bin widths; levels are shifted along.
    errors = squared_errors(counts, BINS - zero_points * scales, scales, 1 << bits)
    return _least(histogram, candidates, errors)


def squared_errors(counts: I64, starts: F64, steps: F64, levels: int) -> F64:
    """Sum the squared distance of every count to its nearest level, per candidate.

    Args:
        counts: (n,) bins; count j stands at j + 0.5.
        starts, steps: (m,) lowest level and distance of levels, in bin widths.
        levels: number of levels; values outside go to the first or last.

    Returns:
        (m,) float64, squared bin widths.
    """
    centres = np.arange(counts.size) + 0.5
    moments = [counts.astype(np.float64), counts * centres, counts * centres**2]
    n, x, xx = (np.concatenate([[0.0], np.cumsum(moment)]) for moment in moments)
    errors = np.empty(starts.size)
    rows = max(_EDGES // levels, 1)
    for at in range(0, starts.size, rows):
        start, step = starts[at : at + rows], steps[at : at + rows]
        sum_k_x, sum_kk_n = _level_moments(n, x, start, step, levels)
        sum_k_n = sum_kk_n[0]
        errors[at : at + rows] = (
            xx[-1]
            - 2.0 * (start * x[-1] + step * sum_k_x)
            + start**2 * n[-1]
            + 2.0 * start * step * sum_k_n
            + step**2 * sum_kk_n[1]
        )
    return errors


def _level_moments(n: F64, x: F64, start: F64, step: F64, levels: int) -> tuple[F64, tuple[F64, F64]]:
    """Return the sums over levels k of k x, k n and k**2 n, by parts: a boundary lifts all beyond it by a level."""
    k = np.arange(1, levels)
    boundaries = start[:, None] + step[:, None] * (k - 0.5)
    first = np.ceil(boundaries - 0.5)
    np.clip(first, 0, n.size - 1, out=first)
    edges: npt.NDArray[np.int32] = first.astype(np.int32)
    beyond_n, beyond_x = n[-1] - n[edges], x[-1] - x[edges]
    return beyond_x.sum(axis=1), (beyond_n.sum(axis=1), beyond_n @ (2.0 * k - 1.0))


def percentile_of(histogram: Histogram, percentile: float) -> float:
    """Compute the value that ``percentile`` percent of all |x|, zeros included, do not exceed.

    Counts are spread evenly within their bin; never above the exact maximum, 100 is that maximum.
    """
    if percentile >= 100.0:
        return largest(histogram)
    rank = histogram.count * (percentile / 100.0) - histogram.zeros
    if rank <= 0:
        return 0.0
    counts = histogram.magnitude
    sums = np.cumsum(counts)
    at = int(np.searchsorted(sums, rank))
    below = float(sums[at - 1]) if at else 0.0
    within = (rank - below) / float(counts[at])
    return min((at + within) * histogram.width, largest(histogram))


def _candidates(counts: I64, levels: int) -> I64:
    """Return the number of bins each candidate keeps, ascending; empty when the maximum lies below the first."""
    used = np.flatnonzero(counts)
    bins = int(used[-1]) + 1 if used.size else 0
    return np.arange(max(FIRST_BIN, levels), bins + 1, dtype=np.int64)


def _least(histogram: Histogram, candidates: I64, errors: F64) -> float:
    lowest = float(errors.min())
    return _edge(histogram, int(candidates[_last_within(errors, lowest + TIE * abs(lowest))]))


def _last_within(values: F64, limit: float) -> int:
    return int(np.flatnonzero(values <= limit)[-1])


def _edge(histogram: Histogram, bins: int) -> float:
    return min(bins * histogram.width, largest(histogram))


def _check(method: str, bits: int, percentile: float) -> None:
    if method not in CALIBRATORS:
        raise CalibrationError(f"there is no calibrator '{method}'", fix=nearest(method, CALIBRATORS))
    if not 2 <= bits <= 16:
        raise CalibrationError("bits are out of range", seen=f"bits={bits}", fix="give 2 to 16")
    if not 0.0 < percentile <= 100.0:
        raise CalibrationError(
            "the percentile is out of range", seen=f"percentile={percentile}", fix="above 0, up to 100"
        )


class HistogramStats:
    """Statistics for a strategy (:class:`avq.CalibrationStats`); every range is computed once.

    Args:
        histograms: by tensor name; must not change afterwards.
    """

    def __init__(self, histograms: Mapping[str, Histogram]) -> None:
        self._histograms = histograms
        self._ranges: dict[tuple[object, ...], Range] = {}

    @property
    def tensors(self) -> Sequence[str]:
        return sorted(self._histograms)

    def histogram(self, tensor: str) -> Histogram:
        """Return the counts of ``tensor``.

        Raises:
            CalibrationError: the tensor was not collected.
        """
        if tensor not in self._histograms:
            raise CalibrationError(
                f"the tensor '{tensor}' was not collected", fix=nearest(tensor, self._histograms)
            )
        return self._histograms[tensor]

    def range(
        self,
        tensor: str,
        method: Calibrator,
        *,
        bits: int = 8,
        symmetric: bool = True,
        percentile: float = 99.99,
    ) -> Range:
        """Compute the clipping range of one tensor, see :func:`find_range`.

        Raises:
            CalibrationError: the tensor was not collected, is empty, or held NaN or Inf.
        """
        return self.merged_range((tensor,), method, bits=bits, symmetric=symmetric, percentile=percentile)

    def merged_range(
        self,
        tensors: Sequence[str],
        method: Calibrator,
        *,
        bits: int = 8,
        symmetric: bool = True,
        percentile: float = 99.99,
    ) -> Range:
        """Compute one range for tied tensors, from the sum of their counts; errors as :meth:`range`."""
        names = tuple(sorted(set(tensors)))
        key = (names, method, bits, symmetric, percentile if method == "percentile" else None)
        if key not in self._ranges:
            merged = self._merged(names)
            self._ranges[key] = find_range(
                merged, method, bits=bits, symmetric=symmetric, percentile=percentile
            )
        return self._ranges[key]

    def _merged(self, names: Sequence[str]) -> Histogram:
        for name in names:
            _check_finite(name, self.histogram(name))
        if len(names) == 1:
            return self.histogram(names[0])
        merged = Histogram()
        for name in names:
            merged.merge(self.histogram(name))
        return merged


def _check_finite(name: str, histogram: Histogram) -> None:
    if histogram.nans or histogram.infinities:
        raise CalibrationError(
            f"the tensor '{name}' held numbers that are not finite",
            seen=f"{histogram.nans} NaN and {histogram.infinities} Inf among {histogram.count} finite ones",
            fix="the float model itself breaks on these pictures: check --preprocess and the model",
        )
    if not histogram.count:
        raise CalibrationError(
            f"the tensor '{name}' has no values", seen="0 values", fix="calibrate on at least one picture"
        )
