"""What a run has measured so far, and what it says of itself at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from avq.daemon.latency import Histogram
from avq.daemon.ledger import Account
from avq.daemon.publish import SinkReport
from avq.errors import AvqError, MachineError
from avq.types import StageTimes


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

    ``asides`` holds what "drift" and "shadow" found, where they looked. ``unheard``: every sink broke, which
    ends a run.
    """

    account: Account
    misses: int
    metrics: dict[str, dict[str, float]]
    modes: tuple[str, ...]
    events: tuple[dict[str, Any], ...] = ()
    failures: tuple[Failure, ...] = ()
    sinks: tuple[SinkReport, ...] = ()
    asides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    unheard: bool = False

    @property
    def exit_code(self) -> int:
        """0, or what the first failed camera's error asks for, or the machine's where no sink was left."""
        if self.failures:
            return self.failures[0].error.exit_code
        return MachineError.exit_code if self.unheard else 0

    def as_json(self) -> dict[str, Any]:
        """Latencies are of the age at publication, in milliseconds."""
        age = self.metrics["age"]
        return {
            "captured": self.account.captured,
            "published": self.account.published,
            "dropped": self.account.dropped,
            "in_flight": self.account.in_flight,
            "misses": self.misses,
            "p50_ms": age["p50_ms"],
            "p99_ms": age["p99_ms"],
            "max_ms": age["max_ms"],
            "modes": list(self.modes),
            "stages": self.metrics,
            "events": list(self.events),
            "failures": [_failure_row(failure) for failure in self.failures],
            "sinks": [sink.as_json() for sink in self.sinks],
            **self.asides,
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
