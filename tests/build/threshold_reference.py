"""Threshold searches written out: every candidate on its own, every bin looked at."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from avq.build.histogram import Histogram
from avq.types import F64, I64

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


def literal_entropy(histogram: Histogram, levels: int = 128) -> tuple[float, dict[int, float]]:
    """The threshold, and the divergence of every candidate, by a loop over candidates."""
    counts = histogram.magnitude
    top = max(-min(histogram.minimum, 0.0), max(histogram.maximum, 0.0))
    used = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 0
    divergence = {kept: literal_kl(counts, kept, levels) for kept in range(max(128, levels), used + 1)}
    if not divergence:
        return top, divergence
    least = min(divergence.values())
    best = max(kept for kept, value in divergence.items() if value <= least + TIE)
    return min(best * histogram.width, top), divergence


def literal_squared_error(values: F64, weights: I64, scale: float, lowest: int, highest: int) -> float:
    """Sum of weighted squared distances to the integer grid scale * (lowest..highest)."""
    levels = np.clip(np.round(values / scale), lowest, highest)
    return float((weights * (values - levels * scale) ** 2).sum())


def random_histograms(seed: int, count: int) -> Iterator[tuple[str, Histogram]]:
    """Activations as networks have them: ReLU spikes, SiLU, long tails, few values, awkward maxima."""
    kinds = ("relu", "silu", "normal", "laplace", "lognormal", "uniform", "integers", "sparse", "just over", "tiny")
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        kind = kinds[number % len(kinds)]
        histogram = Histogram()
        histogram.add(_values(kind, rng, int(rng.integers(300, 60_000))))
        yield kind, histogram


def _values(kind: str, rng: np.random.Generator, size: int) -> F64:
    x = rng.normal(0.0, 1.0, size) * 2.0 ** rng.uniform(-20, 20)
    if kind == "relu":
        return np.maximum(x - abs(x).mean() * rng.uniform(-1, 2), 0.0)
    if kind == "silu":
        x = rng.normal(0.0, rng.uniform(0.5, 6.0), size)
        return np.asarray(x / (1.0 + np.exp(-x)))
    if kind == "laplace":
        return rng.laplace(0.0, rng.uniform(0.01, 100.0), size)
    if kind == "lognormal":
        return rng.lognormal(0.0, rng.uniform(0.3, 2.5), size)
    if kind == "uniform":
        return rng.uniform(0.0, rng.uniform(0.5, 2.0), size)
    if kind == "integers":
        return rng.integers(0, int(rng.integers(2, 300)), size).astype(np.float64)
    if kind == "sparse":
        return np.asarray(rng.choice(np.append(x[:40], 0.0), size))
    if kind == "just over":
        edge = 2.0 ** int(rng.integers(-10, 10))
        return np.append(np.clip(x / abs(x).max() * edge, -edge, edge), edge * (1.0 + 2.0**-20))
    return x * 1e-30 if kind == "tiny" else x
