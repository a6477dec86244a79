"""Frames that wait for the engine: the newest per camera, or every one, and exact books of both.

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

# Where every captured frame went: captured == published + sum(dropped by cause) + in flight, always.

SUPERSEDED = "superseded"
STOPPED = "stopped"
STRIDE = "stride"


@dataclass
class FrameCounters:
    """Counts of one camera. ``in_flight`` is not kept here: whoever holds the frames counts them."""

    captured: int = 0
    published: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    _lost_before: dict[str, int] = field(default_factory=dict)

    def announced(self, lost: dict[str, int]) -> None:
        """One frame was handed over; ``lost`` are the cumulative drops of its capture process."""
        self.lost_so_far(lost)
        self.captured += 1

    def lost_so_far(self, lost: dict[str, int]) -> None:
        """Take over what the capture process dropped since the last message."""
        for cause, total in lost.items():
            new = total - self._lost_before.get(cause, 0)
            self.captured += new
            self.dropped[cause] += new
        self._lost_before = dict(lost)

    def replaced(self) -> None:
        """A fresh capture process counts its drops from zero."""
        self._lost_before = {}


@dataclass(frozen=True, slots=True)
class FrameCounts:
    """The books at one instant, over all cameras."""

    captured: int
    published: int
    dropped: dict[str, int]
    in_flight: int

    @property
    def balanced(self) -> bool:
        """Nothing vanished and nothing was counted twice."""
        return self.captured == self.published + sum(self.dropped.values()) + self.in_flight


@dataclass(frozen=True, slots=True, eq=False)
class Arrival:
    """A frame on its way, with what must happen when nobody needs its pixels any more.

    Attributes:
        frame: its pixels are borrowed until ``release`` is called.
        live: False for files: they wait for us, so their frames are captured when they are taken.
        release: gives the slot back; called exactly once, by whoever ends the frame's way.
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
    """Cameras take turns; within one camera frames keep their order."""

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
            known.counters.replaced()

    def close_camera(self, camera: str, lost: dict[str, int] | None = None) -> None:
        """No more frames will come; ``lost`` are its capture process's last cumulative drops, when it told."""
        known = self._cameras.setdefault(camera, _Camera(every=True))
        known.open = False
        if lost is not None:
            known.counters.lost_so_far(lost)

    def lost_so_far(self, camera: str, lost: dict[str, int]) -> None:
        """Frames that its capture process dropped since it began, by cause."""
        self._cameras[camera].counters.lost_so_far(lost)

    def offer(self, arrival: Arrival, lost: dict[str, int]) -> Arrival | None:
        """Take a frame in; returns the one it superseded, whose pixels must be released."""
        camera = self._cameras[arrival.frame.camera]
        camera.counters.announced(lost)
        old = camera.waiting.popleft() if camera.waiting and not camera.every else None
        if old is not None:
            camera.counters.dropped[SUPERSEDED] += 1
        camera.waiting.append(arrival)
        return old

    def take(self) -> Arrival | None:
        """The next frame of the camera that has waited longest for its turn; it counts as in flight."""
        for _ in range(len(self._turns)):
            name = self._turns[0]
            self._turns.rotate(-1)
            if self._cameras[name].waiting:
                self._working[name] = self._working.get(name, 0) + 1
                return self._cameras[name].waiting.popleft()
        return None

    def finished(self, camera: str, dropped: str | None = None) -> None:
        """A taken frame was published, or dropped for the cause named."""
        self._working[camera] -= 1
        counters = self._cameras[camera].counters
        if dropped is None:
            counters.published += 1
        else:
            counters.dropped[dropped] += 1

    def drop_waiting(self, cause: str = STOPPED) -> list[Arrival]:
        """Empty the queues; returns the frames, whose pixels must be released."""
        gone: list[Arrival] = []
        for camera in self._cameras.values():
            camera.counters.dropped[cause] += len(camera.waiting)
            gone.extend(camera.waiting)
            camera.waiting.clear()
        return gone

    @property
    def exhausted(self) -> bool:
        """Every camera has ended and nothing waits."""
        return all(not camera.open and not camera.waiting for camera in self._cameras.values())

    def counts(self) -> FrameCounts:
        """The books, in flight counted from the queues themselves."""
        each = self.counts_by_camera().values()
        dropped = sum((Counter(one.dropped) for one in each), Counter[str]())
        return FrameCounts(
            sum(one.captured for one in each),
            sum(one.published for one in each),
            dict(sorted(dropped.items())),
            sum(one.in_flight for one in each),
        )

    def counts_by_camera(self) -> dict[str, FrameCounts]:
        """The books of each camera."""
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
        """As ``Inbox.offer``; the superseded frame is released here."""
        with self._lock:
            old = self._inbox.offer(arrival, lost)
        self.wake()
        if old is not None:
            old.release()

    def wake(self) -> None:
        """There is something else to tell than a frame."""
        if self._waiting:
            self._wakes.put(None)

    def stop(self) -> None:
        """No frame is taken any more; takes no lock, so a signal handler may call it."""
        self._stopped = True
        self._wakes.put(None)

    def next(self, wait_s: float) -> Arrival | None:
        """The next frame; None after ``wait_s`` without one, when stopped, or when nothing will come."""
        taken = self._take()
        if taken is None and not self.over:
            with suppress(Empty):  # a wake-up left over from before only makes the loop look once more
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
        """Stopped, or every camera has ended and nothing waits."""
        with self._lock:
            return self._stopped or self._inbox.exhausted

    def counts(self) -> FrameCounts:
        with self._lock:
            return self._inbox.counts()

    def counts_by_camera(self) -> dict[str, FrameCounts]:
        with self._lock:
            return self._inbox.counts_by_camera()
