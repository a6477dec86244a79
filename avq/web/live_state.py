"""State of a run, written by the loop and read by the web thread without locks.

One writer (the loop; for events, their thread) and readers that copy whole dictionaries and deques in one step,
so no lock is needed. No code here calls the web thread, so one that hangs or has ended delays nothing.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from avq.clock import UNIX_CLOCK
from avq.daemon.governor import Transition
from avq.daemon.metrics import Histogram
from avq.daemon.observer import RunView
from avq.daemon.pipeline import FrameResult
from avq.types import Frame, Published
from avq.types.frame import Before

FRAMES_KEPT = 480
EVENTS_KEPT = 256
CHANGES_KEPT = 120
#: Events of one kind and camera that are listed within an hour; more are counted only.
REPEATS_LISTED = 30
_HOUR_S = 3600


class BundleInfo(TypedDict):
    """The serving bundle; ``input_px`` is (width, height) of the network."""

    name: str
    digest: str
    engine: str
    precision: str
    input_px: list[int]


class ModeInfo(BundleInfo):
    """One mode; ``digest`` is that of its bundle, ``stride`` n serves every n-th frame."""

    stride: int


class RunInfo(TypedDict, total=False):
    """Facts of a run that stay the same until another bundle serves; empty until the bundle is open."""

    version: str
    host: str
    system: str
    pid: int
    labels: list[str]
    cameras: dict[str, str]
    deadlines_ms: dict[str, float]
    bundle: BundleInfo
    modes: list[ModeInfo]


class ChangeRow(Before):
    """A change of mode or alert; "from" is the mode before, ``at`` Unix time in seconds."""

    at: float
    kind: str
    mode: str
    alert: bool
    reason: str


@dataclass(frozen=True, slots=True)
class FrameRow:
    """One published frame.

    Attributes:
        index: counts published frames of this run from 1.
        published: the message as sinks got it.
        stages: (name, nanoseconds) in the order the frame walked through them.
    """

    index: int
    published: Published
    stages: tuple[tuple[str, int], ...]

    @property
    def longest(self) -> str:
        """The stage that took longest."""
        return max(self.stages, key=lambda stage: stage[1])[0]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copied picture and the message that belongs to it. ``number`` counts the snapshots of one camera from 1."""

    number: int
    frame: Frame
    published: Published
    taken_ns: int


@dataclass
class CameraState:
    """State of one camera."""

    age: Histogram = field(default_factory=Histogram)
    stages: dict[str, Histogram] = field(default_factory=dict)
    late: Counter[str] = field(default_factory=Counter)
    last: FrameRow | None = None
    seen_ns: int = 0
    gap_ns: int = 0
    snapshot: Snapshot | None = None
    requested: bool = False

    def on_frame(self, row: FrameRow, now_ns: int) -> None:
        self.age.record(row.published.age_ns)
        for stage, spent_ns in row.stages:
            if (histogram := self.stages.get(stage)) is None:
                histogram = self.stages[stage] = Histogram()
            histogram.record(spent_ns)
        if row.published.late:
            self.late[row.longest] += 1
        self.gap_ns = now_ns - self.seen_ns if self.seen_ns else 0
        self.last, self.seen_ns = row, now_ns

    def take_snapshot(self, frame: Frame, published: Published, now_ns: int) -> None:
        """Copy the pixels: the only work of the frame path for viewers, and only on request."""
        number = self.snapshot.number + 1 if self.snapshot else 1
        copied = Frame(frame.camera, frame.seq, frame.t_capture_ns, frame.pixels.copy())
        self.requested = False
        self.snapshot = Snapshot(number, copied, published, now_ns)


class LiveState:
    """A ``RunObserver``: written by the loop, read by any thread."""

    def __init__(self) -> None:
        self.boot = uuid.uuid4().hex
        self.started_ns = time.monotonic_ns()
        self.run_info: RunInfo = {}
        self.run: RunView | None = None
        self.over = False
        self.last_tick_ns = 0
        self.cameras: dict[str, CameraState] = {}
        self.frames: deque[FrameRow] = deque(maxlen=FRAMES_KEPT)
        self.events: deque[tuple[int, dict[str, Any]]] = deque(maxlen=EVENTS_KEPT)
        self.changes: deque[ChangeRow] = deque(maxlen=CHANGES_KEPT)  # of mode or alert, oldest first
        self.counted_events: Counter[tuple[str, str]] = Counter()
        self.reconnects: Counter[tuple[str, str]] = Counter()
        self.transitions: Counter[tuple[str, str, str]] = Counter()
        self.modes: dict[str, int] = {}  # frames published in each
        self.mode = ""
        self.alert = False
        self._published = 0
        self._event_count = 0
        self._listed_s: dict[tuple[str, str], deque[float]] = {}

    @property
    def started_s(self) -> float:
        """Unix time of the start, by the clock as it is set now."""
        return _unix_s(self.started_ns)

    def describe(self, run_info: RunInfo) -> None:
        """Set what stays the same until another bundle serves: bundle, modes, cameras."""
        self.run_info = run_info.copy()

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names by id."""
        return tuple(self.run_info.get("labels", ()))

    def on_open(self, run: RunView) -> None:
        self.run = run
        self.last_tick_ns = time.monotonic_ns()

    def on_tick(self) -> None:
        self.last_tick_ns = time.monotonic_ns()

    def on_frame(self, frame: Frame, result: FrameResult) -> None:
        published = result.published
        self._published += 1
        row = FrameRow(self._published, published, tuple(result.times.items()))
        now_ns = time.monotonic_ns()
        camera = self.cameras.get(frame.camera)
        if camera is None:
            camera = self.cameras[frame.camera] = CameraState()
        camera.on_frame(row, now_ns)
        self.frames.append(row)
        self.mode = published.mode
        self.modes[published.mode] = self.modes.get(published.mode, 0) + 1
        if camera.requested:
            camera.take_snapshot(frame, published, now_ns)
        if result.transition is not None:
            self._on_transition(result.transition)

    def _on_transition(self, transition: Transition) -> None:
        before, after = transition.before, transition.after
        self.transitions[before.mode, after.mode, transition.kind] += 1
        self.mode, self.alert = after.mode, after.alert
        self.changes.append(
            {
                "at": round(_unix_s(time.monotonic_ns()), 3),
                "kind": transition.kind,
                "from": before.mode,
                "mode": after.mode,
                "alert": after.alert,
                "reason": transition.reason,
            }
        )

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Keep an event; called on the thread that hands out events."""
        self._event_count += 1
        at_ns = min(event.get("t_ns", 1 << 62), time.monotonic_ns())
        kind, camera = str(event.get("kind", "")), str(event.get("camera", ""))
        self.counted_events[kind, camera] += 1
        if kind == "camera_restarted":
            self.reconnects[camera, str(event.get("cause", ""))] += 1
        for counted, count in dict(event.get("counts", {})).items():
            self.counted_events[counted, camera] += count
            if counted == "camera_restarted":
                self.reconnects[camera, "unsteady"] += count
        if self._repeats(kind, camera):
            return
        self.events.append((self._event_count, {**event, "at": round(_unix_s(at_ns), 3)}))

    def _repeats(self, kind: str, camera: str) -> bool:
        """Whether a kind of event came so often within an hour that it is counted only."""
        now_s = time.monotonic()
        recent = self._listed_s.setdefault((kind, camera), deque(maxlen=REPEATS_LISTED))
        if len(recent) == REPEATS_LISTED and now_s - recent[0] < _HOUR_S:
            return True
        recent.append(now_s)
        return False

    def on_end(self) -> None:
        self.over = True


def _unix_s(monotonic_ns: int) -> float:
    return (monotonic_ns + UNIX_CLOCK.offset_ns()) / 1e9


@dataclass
class ViewerCounts:
    """Viewers of the event stream; written by the web thread only.

    Attributes:
        now: open streams.
        dropped: viewers whose connection was too slow.
        sent: frames, summed over viewers.
        missed: frames that left the state before they could be sent.
    """

    now: int = 0
    dropped: int = 0
    sent: int = 0
    missed: int = 0
