"""Times of engines against each other, fair on a machine that drifts.

Every round runs all contenders once, in a rotating order, so a slow second hits all of them; ratios are
taken within rounds. The interval is the percentile bootstrap of the median of paired ratios (B. Efron,
R. Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13), in blocks of consecutive rounds, because
neighbouring rounds share their drift (H. Kunsch, "The jackknife and the bootstrap for general stationary
observations", Annals of Statistics 17, 1989).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from avq.clock import Clock, SystemClock
from avq.errors import RequestError
from avq.types.frame import I64

Run = Callable[[], object]
_RESAMPLES = 2000
_SEED = 20240501  # any fixed number: the same samples give the same interval


@dataclass(frozen=True)
class LatencySamples:
    """Nanoseconds per round, (rounds,) int64; round i of two contenders was measured side by side."""

    ns: I64

    @property
    def p50_ms(self) -> float:
        return self.percentile_ms(50)

    @property
    def p99_ms(self) -> float:
        return self.percentile_ms(99)

    def percentile_ms(self, percent: float) -> float:
        """Percentile of single runs in milliseconds."""
        return float(np.percentile(self.ns, percent)) / 1e6


class ProcessorClock:
    """Time this process spent on processors, all threads together: what others do on the machine is not in it."""

    def now_ns(self) -> int:
        return time.process_time_ns()


def paired_latency(
    runs: Mapping[str, Run], *, rounds: int = 100, warmup: int = 5, clock: Clock | None = None
) -> dict[str, LatencySamples]:
    """Time every callable once per round, interleaved; the first one rotates.

    Args:
        runs: name -> one inference, buffers and warm engine included.
        rounds: timed rounds, at least 1.
        warmup: untimed rounds before them.
        clock: any monotonic clock; the machine's when None.

    Returns:
        name -> samples in round order, all of length ``rounds``.
    """
    if rounds < 1 or not runs:
        raise RequestError(
            "nothing to time", seen=f"{len(runs)} runs, {rounds} rounds", fix="give at least one of each"
        )
    ticking = SystemClock() if clock is None else clock
    names = list(runs)
    for _ in range(warmup):
        for name in names:
            runs[name]()
    times: dict[str, list[int]] = {name: [] for name in names}
    for round_index in range(rounds):
        for name in _order(names, round_index):
            times[name].append(_time(runs[name], ticking))
    return {name: LatencySamples(np.asarray(ns, np.int64)) for name, ns in times.items()}


def _order(names: list[str], round_index: int) -> list[str]:
    """Rotated, and reversed every other turn: each is equally often after each other."""
    shift = (round_index // 2) % len(names)
    turned = names[shift:] + names[:shift]
    return turned[::-1] if round_index % 2 else turned


def _time(run: Run, clock: Clock) -> int:
    start = clock.now_ns()
    run()
    return clock.now_ns() - start


def ratio_interval(a: LatencySamples, b: LatencySamples) -> tuple[float, float, float]:
    """time(a) / time(b): (median, lower, upper end of the 95 % interval) of the ratios within rounds.

    Raises RequestError when the two were not measured in the same rounds.
    """
    if a.ns.shape != b.ns.shape or a.ns.size == 0:
        raise RequestError(
            "the two were not timed together",
            seen=f"{a.ns.size} and {b.ns.size} rounds",
            fix="time both in one call of paired_latency",
        )
    logs = np.log(np.maximum(a.ns, 1) / np.maximum(b.ns, 1))
    medians = np.median(logs[_resampled_rounds(logs.size)], axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    middle, wider = float(np.median(logs)), _small_sample_factor(logs.size)
    lower = middle - wider * max(middle - low, 0.0)
    upper = middle + wider * max(high - middle, 0.0)
    return float(np.exp(middle)), float(np.exp(lower)), float(np.exp(upper))


def _block_length(rounds: int) -> int:
    return max(1, int(np.cbrt(rounds) + 0.5))


def _small_sample_factor(rounds: int) -> float:
    """Few blocks make the bootstrap too sure of itself: Student's t over the normal quantile, first order."""
    free = max(rounds / _block_length(rounds) - 1.0, 1.0)
    return float((1.0 + (1.96**2 + 1.0) / (4.0 * free)) * np.sqrt((free + 1.0) / free))


def _resampled_rounds(rounds: int) -> I64:
    """(resamples, rounds) indices: circular blocks of about the cube root of the rounds."""
    block = _block_length(rounds)
    rng = np.random.default_rng(_SEED)
    starts = rng.integers(0, rounds, (_RESAMPLES, -(-rounds // block)))
    indices = (starts[:, :, None] + np.arange(block)) % rounds
    return indices.reshape(_RESAMPLES, -1)[:, :rounds]


def summary(samples: Mapping[str, LatencySamples], reference: str) -> list[dict[str, float | str]]:
    """One row per contender: p50, p99 and the paired ratio to ``reference`` with its interval."""
    rows: list[dict[str, float | str]] = []
    for name, own in samples.items():
        median, low, high = ratio_interval(own, samples[reference])
        rows.append(
            {
                "name": name,
                "p50_ms": own.p50_ms,
                "p99_ms": own.p99_ms,
                "ratio": median,
                "low": low,
                "high": high,
            }
        )
    return rows


__all__ = ["LatencySamples", "ProcessorClock", "paired_latency", "ratio_interval", "summary"]
