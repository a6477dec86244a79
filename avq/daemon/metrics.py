"""What a run has measured so far, and what it says of itself at the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from avq.daemon.inbox import FrameCounts
from avq.daemon.publisher import SinkReport
from avq.errors import AvqError, MachineError
from avq.types import LatencyBudget, StageTimes

# Latency as counts in logarithmic buckets: mergeable, exact in count and maximum, 0.8 % in the
# percentiles.

_SUB_BITS = 6  # 64 buckets per octave
_SUB = 1 << _SUB_BITS
_SMALL = 2 * _SUB  # values below have a bucket of their own


def bucket(value_ns: int) -> int:
    """Index of the bucket of a value >= 0."""
    if value_ns < _SMALL:
        return value_ns
    shift = value_ns.bit_length() - _SUB_BITS - 1
    return (shift << _SUB_BITS) + (value_ns >> shift)


def bucket_middle(index: int) -> int:
    """The middle of a bucket: within 1/128 of every value in it."""
    if index < _SMALL:
        return index
    shift = (index >> _SUB_BITS) - 1
    low = ((index & (_SUB - 1)) + _SUB) << shift
    return low + (1 << shift >> 1)


@dataclass
class Histogram:
    """Counts of nanoseconds; negative values (clocks of two machines) count as 0."""

    counts: dict[int, int] = field(default_factory=dict)
    total: int = 0
    max_ns: int = 0
    sum_ns: int = 0

    def record(self, value_ns: int) -> None:
        """``bucket`` is written out: ten of these stand in the way of every frame."""
        if value_ns < _SMALL:
            index = value_ns = max(value_ns, 0)
        else:
            shift = value_ns.bit_length() - _SUB_BITS - 1
            index = (shift << _SUB_BITS) + (value_ns >> shift)
        self.counts[index] = self.counts.get(index, 0) + 1
        self.total += 1
        self.sum_ns += value_ns
        self.max_ns = max(self.max_ns, value_ns)

    def percentile_ns(self, percent: float) -> int:
        """The smallest value that at least ``percent`` of all values do not exceed, to 1/128; 0 when empty."""
        wanted = max(1, -(-self.total * percent // 100))
        seen = 0
        for index in sorted(self.counts):
            seen += self.counts[index]
            if seen >= wanted:
                return min(bucket_middle(index), self.max_ns)
        return 0

    def merge(self, other: Histogram) -> None:
        """Add the counts of another histogram."""
        for index, count in other.counts.items():
            self.counts[index] = self.counts.get(index, 0) + count
        self.total += other.total
        self.max_ns = max(self.max_ns, other.max_ns)
        self.sum_ns += other.sum_ns

    def summary_ms(self) -> dict[str, float]:
        """p50, p95, p99 and the exact maximum, in milliseconds."""
        quantiles = {f"p{p}_ms": round(self.percentile_ns(p) / 1e6, 3) for p in (50, 95, 99)}
        return {**quantiles, "max_ms": round(self.max_ns / 1e6, 3)}


@dataclass(frozen=True, slots=True)
class Judgement:
    """One frame against the budget.

    Attributes:
        late: this frame missed its deadline.
        misses, frames: within the window that ends with this frame.
        full: the window holds as many frames as the budget asks.
    """

    late: bool
    misses: int
    frames: int
    full: bool


class LatencyJudge:
    """Counts misses over the last ``window_frames`` published frames.

    Args:
        budget: of all cameras.
        deadlines_ns: of cameras that have one of their own.
    """

    def __init__(self, budget: LatencyBudget, deadlines_ns: Mapping[str, int] | None = None) -> None:
        self.budget = budget
        self.misses = 0
        self._deadlines_ns = dict(deadlines_ns or {})
        self._window: deque[bool] = deque(maxlen=budget.window_frames)

    def deadline_ns(self, camera: str) -> int:
        """Allowed age of its frames at publication."""
        return self._deadlines_ns.get(camera, self.budget.deadline_ns)

    def is_late(self, age_ns: int, camera: str = "") -> bool:
        return age_ns > self.deadline_ns(camera)

    def count(self, age_ns: int, camera: str = "") -> None:
        """Count a frame that says nothing about the work done now: it waited for the work before."""
        self.misses += self.is_late(age_ns, camera)

    def restart(self) -> None:
        """Judge other work from here on: an empty window."""
        self._window.clear()

    def judge(self, age_ns: int, camera: str = "") -> Judgement:
        """Record a published frame's age."""
        late = self.is_late(age_ns, camera)
        self.misses += late
        self._window.append(late)
        size = len(self._window)
        return Judgement(late, sum(self._window), size, size == self.budget.window_frames)


@dataclass
class Metrics:
    """Histograms per stage and of the age at publication; written by the loop only."""

    age: Histogram = field(default_factory=Histogram)
    stages: dict[str, Histogram] = field(default_factory=dict)

    def record(self, times: StageTimes, age_ns: int) -> None:
        """One published frame."""
        self.age.record(age_ns)
        for stage, spent_ns in times.items():
            if (histogram := self.stages.get(stage)) is None:
                histogram = self.stages[stage] = Histogram()
            histogram.record(spent_ns)

    def snapshot(self) -> dict[str, dict[str, float]]:
        """Milliseconds per stage, and of "age" (capture to publication)."""
        rows = {stage: histogram.summary_ms() for stage, histogram in self.stages.items()}
        return {**rows, "age": self.age.summary_ms()}


@dataclass(frozen=True, slots=True)
class Failure:
    """A camera that ended with an error. ``frames`` were captured before."""

    camera: str
    error: AvqError
    frames: int


@dataclass(frozen=True)
class RunSummary:
    """The last thing a run says; ``as_json`` has the keys of the command contract.

    ``side_tasks``: results of "drift" and "shadow", where configured. ``all_sinks_failed``: this
    ends a run.
    """

    counts: FrameCounts
    misses: int
    metrics: dict[str, dict[str, float]]
    modes: tuple[str, ...]
    events: tuple[dict[str, Any], ...] = ()
    failures: tuple[Failure, ...] = ()
    sinks: tuple[SinkReport, ...] = ()
    side_tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    all_sinks_failed: bool = False

    @property
    def exit_code(self) -> int:
        """0, or what the first failed camera's error asks for, or the machine's where no sink was left."""
        if self.failures:
            return self.failures[0].error.exit_code
        return MachineError.exit_code if self.all_sinks_failed else 0

    def as_json(self) -> dict[str, Any]:
        """Latencies are of the age at publication, in milliseconds."""
        age = self.metrics["age"]
        return {
            "captured": self.counts.captured,
            "published": self.counts.published,
            "dropped": self.counts.dropped,
            "in_flight": self.counts.in_flight,
            "misses": self.misses,
            "p50_ms": age["p50_ms"],
            "p99_ms": age["p99_ms"],
            "max_ms": age["max_ms"],
            "modes": list(self.modes),
            "stages": self.metrics,
            "events": list(self.events),
            "failures": [_failure_row(failure) for failure in self.failures],
            "sinks": [sink.as_json() for sink in self.sinks],
            **self.side_tasks,
        }


def _failure_row(failure: Failure) -> dict[str, Any]:
    error = failure.error
    return {
        "camera": failure.camera,
        "frames": failure.frames,
        "what": error.what,
        "seen": error.seen,
        "fix": error.fix,
    }
