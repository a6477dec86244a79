"""Queue of captured frames (the newest per camera, or all), and exact frame accounting.

Pure data: no thread, no clock. ``SharedInbox`` puts a lock around it and lets the loop wait.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from avq.types import Frame

SUPERSEDED = "superseded"
STOPPED = "stopped"
STRIDE = "stride"


@dataclass
class FrameCounters:
    """Counts of one camera: captured == published + sum(dropped) + frames in flight, at all times."""

    captured: int = 0
    published: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    _lost_before: dict[str, int] = field(default_factory=dict)

    def on_captured(self, lost: dict[str, int]) -> None:
        """Count one captured frame; ``lost`` are the cumulative drops of its capture process."""
        self.lost_so_far(lost)
        self.captured += 1

    def lost_so_far(self, lost: dict[str, int]) -> None:
        """Count the frames that the capture process dropped since its last message."""
        for cause, total in lost.items():
            new = total - self._lost_before.get(cause, 0)
            self.captured += new
            self.dropped[cause] += new
        self._lost_before = dict(lost)

    def on_restart(self) -> None:
        """Expect drops from zero: another capture process has started."""
        self._lost_before = {}


@dataclass(frozen=True, slots=True)
class FrameCounts:
    """Frame counts at one instant."""

    captured: int
    published: int
    dropped: dict[str, int]
    in_flight: int

    @property
    def balanced(self) -> bool:
        """Whether every captured frame is counted exactly once."""
        return self.captured == self.published + sum(self.dropped.values()) + self.in_flight


@dataclass(frozen=True, slots=True, eq=False)
class Arrival:
    """A frame in flight, and the release of its slot.

    Attributes:
        frame: its pixels are borrowed until ``release`` is called.
        live: False for files, whose frames count as captured when they are taken.
        release: returns the slot; called exactly once.
    """

    frame: Frame
    live: bool = True
    release: Callable[[], None] = lambda: None


@dataclass
class _Camera:
    every: bool
    counters: FrameCounters = field(default_factory=FrameCounters)
    waiting: deque[Arrival] = field(default_factory=deque)
    open: bool = True


class Inbox:
    """Takes frames of all cameras in turn, in order within one camera."""

    def __init__(self) -> None:
        self._cameras: dict[str, _Camera] = {}
        self._turns: deque[str] = deque()
        self._working: dict[str, int] = {}

    def open_camera(self, camera: str, *, every: bool) -> None:
        """``every``: frames queue up (the source waits for slots). Otherwise a newer frame replaces an older."""
        known = self._cameras.get(camera)
        if known is None:
            self._cameras[camera] = _Camera(every)
            self._turns.append(camera)
        else:
            known.every, known.open = every, True
            known.counters.on_restart()

    def close_camera(self, camera: str, lost: dict[str, int] | None = None) -> None:
        """Expect no more frames; ``lost`` are the last cumulative drops of the capture process, when known."""
        known = self._cameras.setdefault(camera, _Camera(every=True))
        known.open = False
        if lost is not None:
            known.counters.lost_so_far(lost)

    def lost_so_far(self, camera: str, lost: dict[str, int]) -> None:
        """Count frames that the capture process dropped since its start, by cause."""
        self._cameras[camera].counters.lost_so_far(lost)

    def offer(self, arrival: Arrival, lost: dict[str, int]) -> Arrival | None:
        """Queue a frame; return the one it superseded, which must be released."""
        camera = self._cameras[arrival.frame.camera]
        camera.counters.on_captured(lost)
        old = camera.waiting.popleft() if camera.waiting and not camera.every else None
        if old is not None:
            camera.counters.dropped[SUPERSEDED] += 1
        camera.waiting.append(arrival)
        return old

    def take(self) -> Arrival | None:
        """Take the next frame, of the camera that has waited longest; it counts as in flight."""
        for _ in range(len(self._turns)):
            name = self._turns[0]
            self._turns.rotate(-1)
            if self._cameras[name].waiting:
                self._working[name] = self._working.get(name, 0) + 1
                return self._cameras[name].waiting.popleft()
        return None

    def finished(self, camera: str, dropped: str | None = None) -> None:
        """Count a taken frame as published, or as dropped for a cause."""
        self._working[camera] -= 1
        counters = self._cameras[camera].counters
        if dropped is None:
            counters.published += 1
        else:
            counters.dropped[dropped] += 1

    def drop_waiting(self, cause: str = STOPPED) -> list[Arrival]:
        """Empty the queues; return the frames, which must be released."""
        gone: list[Arrival] = []
        for camera in self._cameras.values():
            camera.counters.dropped[cause] += len(camera.waiting)
            gone.extend(camera.waiting)
            camera.waiting.clear()
        return gone

    @property
    def exhausted(self) -> bool:
        """Whether every camera has ended and the queues are empty."""
        return all(not camera.open and not camera.waiting for camera in self._cameras.values())

    def counts(self) -> FrameCounts:
        """Return the counts over all cameras."""
        cameras = self.counts_by_camera().values()
        dropped = sum((Counter(camera.dropped) for camera in cameras), Counter[str]())
        return FrameCounts(
            sum(camera.captured for camera in cameras),
            sum(camera.published for camera in cameras),
            dict(sorted(dropped.items())),
            sum(camera.in_flight for camera in cameras),
        )

    def counts_by_camera(self) -> dict[str, FrameCounts]:
        """Return the counts of each camera."""
        return {
            name: FrameCounts(
                camera.counters.captured,
                camera.counters.published,
                {cause: count for cause, count in sorted(camera.counters.dropped.items()) if count},
                len(camera.waiting) + self._working.get(name, 0),
            )
            for name, camera in self._cameras.items()
        }


class SharedInbox:
    """An inbox between the receiving thread and the loop.

    The loop waits on a queue of wake-ups rather than on a condition: one switch of threads per frame, not two.
    """

    def __init__(self, inbox: Inbox | None = None) -> None:
        self._inbox = inbox or Inbox()
        self._lock = threading.Lock()
        self._wakes: SimpleQueue[None] = SimpleQueue()
        self._waiting = False
        self._stopped = False

    def open_camera(self, camera: str, *, every: bool) -> None:
        with self._lock:
            self._inbox.open_camera(camera, every=every)

    def close_camera(self, camera: str, lost: dict[str, int] | None = None) -> None:
        with self._lock:
            self._inbox.close_camera(camera, lost)
        self.wake()

    def lost_so_far(self, camera: str, lost: dict[str, int]) -> None:
        with self._lock:
            self._inbox.lost_so_far(camera, lost)

    def offer(self, arrival: Arrival, lost: dict[str, int]) -> None:
        """Queue a frame; release the one it supersedes."""
        with self._lock:
            old = self._inbox.offer(arrival, lost)
        self.wake()
        if old is not None:
            old.release()

    def wake(self) -> None:
        """Wake the loop for something other than a frame."""
        if self._waiting:
            self._wakes.put(None)

    def stop(self) -> None:
        """Give out no more frames; takes no lock, so a signal handler may call it."""
        self._stopped = True
        self._wakes.put(None)

    def next(self, wait_s: float) -> Arrival | None:
        """Take the next frame; None after ``wait_s`` without one, when stopped, or when no more will come."""
        taken = self._take()
        if taken is None and not self.over:
            with suppress(Empty):  # an older wake-up only makes the loop check once more
                self._wakes.get(timeout=wait_s)
            self._waiting = False
            taken = self._take()
        return taken

    def _take(self) -> Arrival | None:
        with self._lock:
            taken = None if self._stopped else self._inbox.take()
            self._waiting = taken is None
            return taken

    def finished(self, camera: str, dropped: str | None = None) -> None:
        with self._lock:
            self._inbox.finished(camera, dropped)

    def drop_waiting(self, cause: str = STOPPED) -> None:
        with self._lock:
            gone = self._inbox.drop_waiting(cause)
        for arrival in gone:
            arrival.release()

    @property
    def over(self) -> bool:
        """Whether it is stopped, or every camera has ended and the queues are empty."""
        with self._lock:
            return self._stopped or self._inbox.exhausted

    def counts(self) -> FrameCounts:
        with self._lock:
            return self._inbox.counts()

    def counts_by_camera(self) -> dict[str, FrameCounts]:
        with self._lock:
            return self._inbox.counts_by_camera()
