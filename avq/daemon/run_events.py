"""The two events that frame a run in a flight record: the limits it starts with, and its frame counts at the end.

Replay reads them: deadline, costs of the modes and frames lost after the last message are not in any message.
"""

from __future__ import annotations

from collections.abc import Mapping

from avq.daemon.inbox import FrameCounts
from avq.daemon.modes import Mode
from avq.daemon.pipeline import Pipeline
from avq.types.frame import Event

STARTED = "run_started"
ENDED = "run_ended"


class RunStarted(Event):
    """Limits of a run, and the service time of each mode on the unloaded machine, in nanoseconds by bundle digest."""

    deadline_ns: int
    window_frames: int
    max_miss_ratio: float
    deadlines_ns: dict[str, int]
    costs_ns: dict[str, float]


class RunEnded(Event):
    """Frames captured by each camera, and the cameras whose frames do not wait (all but files)."""

    captured: dict[str, int]
    live: list[str]


def run_started(pipeline: Pipeline, modes: tuple[Mode, ...]) -> RunStarted:
    """Return the event of a run whose first frame comes next."""
    budget = pipeline.judge.budget
    return {
        "kind": STARTED,
        "t_ns": pipeline.clock.now_ns(),
        "reason": f"deadline {budget.deadline_ns / 1e6:g} ms, modes {', '.join(mode.name for mode in modes)}",
        "deadline_ns": budget.deadline_ns,
        "window_frames": budget.window_frames,
        "max_miss_ratio": budget.max_miss_ratio,
        "deadlines_ns": pipeline.judge.deadlines_ns,
        "costs_ns": {mode.parts.bundle_digest: mode.cost_ns for mode in modes},
    }


def run_ended(pipeline: Pipeline, counts: Mapping[str, FrameCounts]) -> RunEnded:
    """Return the event of a run after its last frame, of the frame counts by camera."""
    captured = {camera: row.captured for camera, row in counts.items()}
    return {
        "kind": ENDED,
        "t_ns": pipeline.clock.now_ns(),
        "reason": f"{sum(captured.values())} frames captured",
        "captured": captured,
        "live": sorted(pipeline.frame_rate.cameras_seen),
    }
