"""Paired latency: time several engines interleaved, so that drift of the machine affects all of them.

Every round runs all candidates once, in rotating order; ratios are computed within rounds. The interval is the
percentile bootstrap of the median of paired ratios (B. Efron, R. Tibshirani, "An Introduction to the Bootstrap",
1993, ch. 13), in blocks of consecutive rounds, because neighbouring rounds share their drift (H. Kunsch, "The
jackknife and the bootstrap for general stationary observations", Annals of Statistics 17, 1989).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from avq.clock import Clock, SystemClock
from avq.errors import RequestError
from avq.types import I64, Latency
from avq.types.arrays import ArrayRecord

Run = Callable[[], object]
_RESAMPLES = 2000
_SEED = 20240501  # any fixed number: the same samples give the same interval


@dataclass(frozen=True, eq=False)
class LatencySamples(ArrayRecord):
    """Times of one candidate.

    Attributes:
        ns: (rounds,) int64 nanoseconds; round i of all candidates was measured together.
    """

    ns: I64

    def __post_init__(self) -> None:
        self._freeze("ns")

    @property
    def p50_ms(self) -> float:
        return self.percentile_ms(50)

    @property
    def p99_ms(self) -> float:
        return self.percentile_ms(99)

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile (0 to 100) of the rounds in milliseconds."""
        return float(np.percentile(self.ns, percent)) / 1e6


def latency_of(
    samples: LatencySamples, base: LatencySamples, ratio: tuple[float, float, float], base_label: str
) -> Latency:
    """Return the latency of ``samples`` with its ratio (median, low, high) to ``base`` of the same rounds."""
    return Latency(
        samples.p50_ms, samples.p99_ms, *ratio, base_label, base.p50_ms, rounds=int(samples.ns.size)
    )


class ProcessorClock:
    """CPU time of this process over all threads: excludes other processes of the machine."""

    def now_ns(self) -> int:
        return time.process_time_ns()


def paired_latency(
    runs: Mapping[str, Run], *, rounds: int = 100, warmup: int = 5, clock: Clock | None = None
) -> dict[str, LatencySamples]:
    """Time every callable once per round, interleaved in rotating order.

    Args:
        runs: name -> function that runs one inference, with buffers and engine ready.
        rounds: timed rounds, at least 1.
        warmup: untimed rounds before them.
        clock: any monotonic clock; None uses the system's.

    Returns:
        name -> samples in round order, all of length ``rounds``.

    Raises:
        RequestError: there are no runs or no rounds.
    """
    if rounds < 1 or not runs:
        raise RequestError(
            "there is nothing to time",
            seen=f"{len(runs)} runs, {rounds} rounds",
            fix="give at least one of each",
        )
    timer = SystemClock() if clock is None else clock
    names = list(runs)
    for _ in range(warmup):
        for name in names:
            runs[name]()
    times: dict[str, list[int]] = {name: [] for name in names}
    for round_index in range(rounds):
        for name in _order(names, round_index):
            times[name].append(_time(runs[name], timer))
    return {name: LatencySamples(np.asarray(ns, np.int64)) for name, ns in times.items()}


def _order(names: list[str], round_index: int) -> list[str]:
    """Return the names rotated, and reversed in every other round: each follows each other equally often."""
    shift = (round_index // 2) % len(names)
    rotated = names[shift:] + names[:shift]
    return rotated[::-1] if round_index % 2 else rotated


def _time(run: Run, clock: Clock) -> int:
    start = clock.now_ns()
    run()
    return clock.now_ns() - start


def ratio_interval(
    a: LatencySamples, b: LatencySamples, *, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Return (median, lower end, upper end of the interval) of time(a) / time(b) within rounds.

    Args:
        a, b: samples of the same rounds.
        confidence: coverage of the interval.

    Raises:
        RequestError: the two were not measured in the same rounds.
    """
    if a.ns.shape != b.ns.shape or a.ns.size == 0:
        raise RequestError(
            "the two samples are not from the same rounds",
            seen=f"{a.ns.size} and {b.ns.size} rounds",
            fix="time both in one call of paired_latency",
        )
    logs = np.log(np.maximum(a.ns, 1) / np.maximum(b.ns, 1))
    medians = np.median(logs[_resampled_rounds(logs.size)], axis=1)
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(medians, [tail, 100.0 - tail])
    middle, wider = float(np.median(logs)), _small_sample_factor(logs.size)
    lower = middle - wider * max(middle - low, 0.0)
    upper = middle + wider * max(high - middle, 0.0)
    return float(np.exp(middle)), float(np.exp(lower)), float(np.exp(upper))


# Looks: measure until the answer is certain, with an interval that holds over all looks together (Bonferroni).

LOOKS = 4
LOOK_CONFIDENCE = 1.0 - 0.05 / LOOKS
FIRST_ROUNDS = 60
LOOKS_LIMIT_S = 60.0


@dataclass(frozen=True)
class Pair:
    """Times of one candidate and of its rival, from the same rounds.

    Attributes:
        own, rival: samples, round by round.
        ratio: (median, lower end, upper end) of own / rival; the interval covers 95 % over all looks together.
    """

    own: LatencySamples
    rival: LatencySamples
    ratio: tuple[float, float, float]


def timed_until(
    decided: Callable[[Pair], bool],
    open_pair: Callable[[], AbstractContextManager[tuple[Run, Run]]],
    *,
    limit_s: float = LOOKS_LIMIT_S,
    looks: int = LOOKS,
    clock: Clock | None = None,
) -> Pair:
    """Time two callables in turns, longer and longer, until ``decided``, at most ``looks`` times.

    Each look adds as many rounds as all before it. It opens both anew: the memory layout of a session alone
    changes its time by a percent.

    Args:
        decided: whether the pair needs no more rounds.
        open_pair: opens the candidate and its rival, ready to run.
        limit_s: no look begins that would end later.
        looks: number of looks at most.
        clock: any monotonic clock; None uses the system's.

    Returns:
        The samples of all looks.
    """
    timer = SystemClock() if clock is None else clock
    start_ns, own, rival = timer.now_ns(), _NONE, _NONE
    for look in range(looks):
        with open_pair() as (a, b):
            samples = paired_latency({"a": a, "b": b}, rounds=max(len(own), FIRST_ROUNDS), clock=timer)
        own = np.concatenate([own, samples["a"].ns])
        rival = np.concatenate([rival, samples["b"].ns])
        pair = _pair(own, rival)
        spent_s = (timer.now_ns() - start_ns) / 1e9
        if decided(pair) or look + 1 == looks or 2.0 * spent_s > limit_s:
            break
    return pair


_NONE: I64 = np.zeros(0, np.int64)


def _pair(own: I64, rival: I64) -> Pair:
    a, b = LatencySamples(own), LatencySamples(rival)
    return Pair(a, b, ratio_interval(a, b, confidence=LOOK_CONFIDENCE))


def _block_length(rounds: int) -> int:
    return max(1, int(np.cbrt(rounds) + 0.5))


def _small_sample_factor(rounds: int) -> float:
    """Return a factor that widens the interval for few blocks: Student's t / normal quantile, first order."""
    free = max(rounds / _block_length(rounds) - 1.0, 1.0)
    return float((1.0 + (1.96**2 + 1.0) / (4.0 * free)) * np.sqrt((free + 1.0) / free))


def _resampled_rounds(rounds: int) -> I64:
    """Return (resamples, rounds) indices: circular blocks of about the cube root of the rounds."""
    block = _block_length(rounds)
    rng = np.random.default_rng(_SEED)
    starts = rng.integers(0, rounds, (_RESAMPLES, -(-rounds // block)))
    indices = (starts[:, :, None] + np.arange(block)) % rounds
    return indices.reshape(_RESAMPLES, -1)[:, :rounds]


class LatencyRow(TypedDict):
    """One candidate: percentiles, and time / time of the reference with its 95 % interval."""

    name: str
    p50_ms: float
    p99_ms: float
    ratio: float
    low: float
    high: float


def summary(samples: Mapping[str, LatencySamples], reference: str) -> list[LatencyRow]:
    """Return one row per candidate: p50, p99 and the paired ratio to ``reference`` with its interval."""
    rows: list[LatencyRow] = []
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
