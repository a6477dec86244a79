"""Deadlines, stage times and what is published."""

from __future__ import annotations

from dataclasses import dataclass, fields

from avq.types.detection import Detections


@dataclass(frozen=True, slots=True)
class LatencyBudget:
    """How late is late.

    Attributes:
        deadline_ns: allowed time from capture to publish.
        window_frames: frames over which the miss ratio is judged.
        max_miss_ratio: tolerated share of late frames in the window, 0..1.
    """

    deadline_ns: int
    window_frames: int = 30
    max_miss_ratio: float = 0.1


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Nanoseconds spent per stage of one frame, all of one clock."""

    queue_ns: int
    preprocess_ns: int
    infer_ns: int
    decode_ns: int

    @property
    def total_ns(self) -> int:
        return self.queue_ns + self.preprocess_ns + self.infer_ns + self.decode_ns

    def items(self) -> list[tuple[str, int]]:
        """(stage, ns) in the order a frame walks through them."""
        return [(f.name.removesuffix("_ns"), getattr(self, f.name)) for f in fields(self)]


@dataclass(frozen=True, slots=True)
class Published:
    """One frame's answer as sinks receive it; lateness is data, not a log line."""

    detections: Detections
    age_ns: int
    dropped_since_last: int
    late: bool
    mode: str
    bundle_digest: str
