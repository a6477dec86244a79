"""Threshold searches written out: every candidate on its own, every bin looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from avq.builder.calibrate.histogram import Histogram
from avq.types import F64, I64, AnyArray

TIE = 1e-12


def literal_kl(counts: I64, kept: int, levels: int) -> float:
    """KL(P || Q) for the first ``kept`` bins, P and Q built as arrays."""
    reference = counts[:kept].astype(np.float64)
    inside = float(reference.sum())
    edges = [-(-level * kept // levels) for level in range(levels)]
    filled = counts[:kept] > 0
    per_level = np.add.reduceat(reference, edges)
    bins_per_level = np.add.reduceat(filled.astype(np.float64), edges)
    mean = per_level / np.maximum(bins_per_level, 1.0)
    widths = np.diff([*edges, kept])
    quantized = np.where(filled, np.repeat(mean, widths), 0.0)
    reference[-1] += float(counts[kept:].sum())
    held = reference > 0
    if inside == 0 or not quantized[held].all():
        return float("inf")
    p = reference[held] / reference.sum()
    q = quantized[held] / inside
    return float((p * np.log(p / q)).sum())


def lean_kl(counts: I64, kept: int, levels: int) -> float:
    """The same number from the filled bins alone, for thousands of candidates in a test."""
    edges = -(-np.arange(levels + 1) * kept // levels)
    inner, outside = counts[:kept], float(counts[kept:].sum())
    filled = inner > 0
    inside = float(inner.sum())
    if inside == 0 or (outside and not filled[-1]):  # Q holds nothing in the last bin, where P holds the rest
        return float("inf")
    per_level = np.add.reduceat(inner, edges[:-1]).astype(np.float64)
    bins_per_level = np.add.reduceat(filled, edges[:-1], dtype=np.int64)
    mean = per_level / np.maximum(bins_per_level, 1)
    q = np.repeat(mean, np.diff(edges))[filled] / inside
    p = inner[filled].astype(np.float64)
    p[-1] += outside
    p /= p.sum()
    return float((p * np.log(p / q)).sum())


def spelled_out_kl(counts: list[int], kept: int, levels: int) -> float:
    """The same without numpy, bin by bin."""
    quantized = [0.0] * kept
    for level in range(levels):
        bins = range(-(-level * kept // levels), -(-(level + 1) * kept // levels))
        filled = [j for j in bins if counts[j]]
        for j in filled:
            quantized[j] = sum(counts[k] for k in bins) / len(filled)
    reference = [float(c) for c in counts[:kept]]
    reference[-1] += sum(counts[kept:])
    inside, total = sum(counts[:kept]), sum(counts)
    divergence = 0.0
    for p, q in zip(reference, quantized, strict=True):
        if p and not q:
            return float("inf")
        if p:
            divergence += p / total * np.log(p / total / (q / inside))
    return float(divergence)


def published_kl(counts: I64, kept: int, levels: int) -> float:
    """The same with numpy slices and a loop over levels, as published implementations run it."""
    reference = counts[:kept].astype(np.float64)
    quantized = np.zeros(kept)
    for level in range(levels):
        here = slice(-(-level * kept // levels), -(-(level + 1) * kept // levels))
        filled = counts[here] != 0
        if filled.any():
            quantized[here][filled] = counts[here].sum() / filled.sum()
    inside = float(reference.sum())
    reference[-1] += float(counts[kept:].sum())
    held = reference > 0
    if inside == 0 or not quantized[held].all():
        return float("inf")
    p, q = reference[held] / reference.sum(), quantized[held] / inside
    return float((p * np.log(p / q)).sum())


def literal_entropy(
    histogram: Histogram, levels: int = 128, divergence_of: Callable[[I64, int, int], float] = literal_kl
) -> tuple[float, dict[int, float]]:
    """The threshold, and the divergence of every candidate, by a loop over candidates."""
    counts = histogram.magnitude
    top = max(-min(histogram.minimum, 0.0), histogram.maximum)
    used = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 0
    divergence = {kept: divergence_of(counts, kept, levels) for kept in range(max(128, levels), used + 1)}
    if not divergence:
        return top, divergence
    least = min(divergence.values())
    best = max(kept for kept, value in divergence.items() if value <= least + TIE)
    return min(best * histogram.width, top), divergence


def literal_squared_error(values: AnyArray, weights: I64, scale: float, lowest: int, highest: int) -> float:
    """Sum of weighted squared distances to the integer grid scale * (lowest..highest)."""
    levels = np.clip(np.round(values / scale), lowest, highest)
    return float((weights * (values - levels * scale) ** 2).sum())


def random_histograms(seed: int, count: int) -> Iterator[tuple[str, Histogram]]:
    """Activations as networks have them: ReLU spikes, SiLU, long tails, few values, awkward maxima."""
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        kind = tuple(_KINDS)[number % len(_KINDS)]
        size = int(rng.integers(300, 60_000))
        x = rng.normal(0.0, 1.0, size) * 2.0 ** rng.uniform(-20, 20)
        histogram = Histogram()
        histogram.add(_KINDS[kind](x, rng))
        yield kind, histogram


def _relu(x: F64, rng: np.random.Generator) -> F64:
    return np.asarray(np.maximum(x - abs(x).mean() * rng.uniform(-1, 2), 0.0))


def _silu(x: F64, rng: np.random.Generator) -> F64:
    x = x / x.std() * rng.uniform(0.5, 6.0)
    return np.asarray(x / (1.0 + np.exp(-x)))


def _just_over(x: F64, rng: np.random.Generator) -> F64:
    """The maximum lies just over a power of two, so half the bins are empty."""
    edge = 2.0 ** int(rng.integers(-10, 10))
    return np.append(np.clip(x / abs(x).max() * edge, -edge, edge), edge * (1.0 + 2.0**-20))


_KINDS: dict[str, Callable[[F64, np.random.Generator], F64]] = {
    "relu": _relu,
    "silu": _silu,
    "normal": lambda x, rng: x,
    "laplace": lambda x, rng: rng.laplace(0.0, rng.uniform(0.01, 100.0), x.size),
    "lognormal": lambda x, rng: rng.lognormal(0.0, rng.uniform(0.3, 2.5), x.size),
    "uniform": lambda x, rng: rng.uniform(0.0, rng.uniform(0.5, 2.0), x.size),
    "integers": lambda x, rng: rng.integers(0, int(rng.integers(2, 300)), x.size).astype(np.float64),
    "sparse": lambda x, rng: np.asarray(rng.choice(np.append(x[:40], 0.0), x.size)),
    "just over": _just_over,
    "tiny": lambda x, rng: x * 1e-30,
}
