"""Measurements of a run: histograms, late frames, and the summary at its end."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict, cast

from avq.daemon.inbox import FrameCounts
from avq.daemon.publisher import SinkReport, SinkRow
from avq.errors import AvqError, MachineError
from avq.types import LatencyBudget, StageTimes
from avq.types.frame import Event

if TYPE_CHECKING:
    from typing_extensions import Required

_SUB_BITS = 6  # 64 buckets per octave
_SUB = 1 << _SUB_BITS
_SMALL = 2 * _SUB  # values below have a bucket of their own


def bucket(value_ns: int) -> int:
    """Return the index of the bucket of a value >= 0."""
    if value_ns < _SMALL:
        return value_ns
    shift = value_ns.bit_length() - _SUB_BITS - 1
    return (shift << _SUB_BITS) + (value_ns >> shift)


def bucket_middle(index: int) -> int:
    """Return the middle of a bucket: within 1/128 of every value in it."""
    if index < _SMALL:
        return index
    shift = (index >> _SUB_BITS) - 1
    low = ((index & (_SUB - 1)) + _SUB) << shift
    return low + (1 << shift >> 1)


@dataclass
class Histogram:
    """Counts of nanoseconds in logarithmic buckets: mergeable, exact count and maximum, percentiles within 0.8 %.

    Negative values (clocks of two machines) count as 0.
    """

    counts: dict[int, int] = field(default_factory=dict)
    total: int = 0
    max_ns: int = 0
    sum_ns: int = 0

    def record(self, value_ns: int) -> None:
        """Add a value. ``bucket`` is inlined: this is called ten times per frame."""
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
        """Return the smallest value that ``percent`` of all values do not exceed, within 1/128; 0 when empty."""
        rank = max(1, -(-self.total * percent // 100))
        count = 0
        for index in sorted(self.counts):
            count += self.counts[index]
            if count >= rank:
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
        """Return p50, p95, p99 and the exact maximum, in milliseconds."""
        quantiles = {f"p{p}_ms": round(self.percentile_ns(p) / 1e6, 3) for p in (50, 95, 99)}
        return {**quantiles, "max_ms": round(self.max_ns / 1e6, 3)}


@dataclass(frozen=True, slots=True)
class Judgement:
    """One frame against the budget.

    Attributes:
        late: this frame missed its deadline.
        misses, frames: within the window that ends with this frame.
        full: the window holds as many frames as the budget sets.
    """

    late: bool
    misses: int
    frames: int
    full: bool


class LatencyJudge:
    """Counts misses over the last ``window_frames`` published frames.

    Args:
        budget: of all cameras.
        deadlines_ns: camera id -> deadline, of cameras that have their own.

    Attributes:
        misses: late frames so far.
    """

    def __init__(self, budget: LatencyBudget, deadlines_ns: Mapping[str, int] | None = None) -> None:
        self.budget = budget
        self.misses = 0
        self.deadlines_ns = dict(deadlines_ns or {})
        self._window: deque[bool] = deque(maxlen=budget.window_frames)

    def deadline_ns(self, camera: str) -> int:
        """Return the allowed age of frames of a camera at publication."""
        return self.deadlines_ns.get(camera, self.budget.deadline_ns)

    def is_late(self, age_ns: int, camera: str = "") -> bool:
        return age_ns > self.deadline_ns(camera)

    def count(self, age_ns: int, camera: str = "") -> None:
        """Count a frame that the mode before delayed: it does not enter the window."""
        self.misses += self.is_late(age_ns, camera)

    def restart(self) -> None:
        """Empty the window, when another mode starts."""
        self._window.clear()

    def judge(self, age_ns: int, camera: str = "") -> Judgement:
        """Record the age of a published frame."""
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
        """Add one published frame."""
        self.age.record(age_ns)
        for stage, spent_ns in times.items():
            if (histogram := self.stages.get(stage)) is None:
                histogram = self.stages[stage] = Histogram()
            histogram.record(spent_ns)

    def snapshot(self) -> dict[str, dict[str, float]]:
        """Return milliseconds per stage, and of "age" (capture to publication)."""
        rows = {stage: histogram.summary_ms() for stage, histogram in self.stages.items()}
        return {**rows, "age": self.age.summary_ms()}


@dataclass(frozen=True, slots=True)
class Failure:
    """A camera that ended with an error. ``frames`` were captured before."""

    camera: str
    error: AvqError
    frames: int


class FailureRow(TypedDict):
    """A camera that ended with an error, in the summary."""

    camera: str
    frames: int
    what: str
    seen: str
    fix: str


class EngineFailureRow(TypedDict):
    """An engine that failed repeatedly and ended the run, in the summary."""

    what: str
    seen: str
    fix: str


class RunAnswer(TypedDict, total=False):
    """The summary of ``avq run --json``.

    "drift" and "shadow" are there where they are configured, "engine_failure" where it ended the run.

    Milliseconds are ages at publication.
    """

    captured: Required[int]
    published: Required[int]
    dropped: Required[dict[str, int]]
    in_flight: Required[int]
    misses: Required[int]
    p50_ms: Required[float]
    p99_ms: Required[float]
    max_ms: Required[float]
    modes: Required[list[str]]
    stages: Required[dict[str, dict[str, float]]]
    events: Required[list[Event]]
    failures: Required[list[FailureRow]]
    sinks: Required[list[SinkRow]]
    engine_failure: EngineFailureRow
    drift: Mapping[str, Any]
    shadow: Mapping[str, Any]


@dataclass(frozen=True)
class RunSummary:
    """Result of a run.

    Attributes:
        counts: frames over all cameras.
        misses: late frames.
        metrics: milliseconds per stage, and of the "age" at publication.
        modes: in the order they served.
        events: the last ones.
        failures: cameras that ended with an error.
        sinks: counts of each sink.
        side_tasks: results of "drift" and "shadow", where configured.
        all_sinks_failed: every sink failed, which ended the run.
        engine_error: of an engine that failed repeatedly, which ended the run.
    """

    counts: FrameCounts
    misses: int
    metrics: dict[str, dict[str, float]]
    modes: tuple[str, ...]
    events: tuple[Event, ...] = ()
    failures: tuple[Failure, ...] = ()
    sinks: tuple[SinkReport, ...] = ()
    side_tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    all_sinks_failed: bool = False
    engine_error: AvqError | None = None

    @property
    def exit_code(self) -> int:
        """0, or 3 when a camera, every sink or the engine failed while the run served.

        1 and 2 are answers to a request, before the first frame: a service manager does not start those again.
        """
        failed = self.failures or self.all_sinks_failed or self.engine_error is not None
        return MachineError.exit_code if failed else 0

    def as_json(self) -> RunAnswer:
        """Return the summary with the keys of the command contract."""
        age = self.metrics["age"]
        answer: RunAnswer = {
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
        }
        if (error := self.engine_error) is not None:
            answer["engine_failure"] = {"what": error.what, "seen": error.seen, "fix": error.fix}
        answer.update(cast("RunAnswer", self.side_tasks))
        return answer


def _failure_row(failure: Failure) -> FailureRow:
    error = failure.error
    return {
        "camera": failure.camera,
        "frames": failure.frames,
        "what": error.what,
        "seen": error.seen,
        "fix": error.fix,
    }
