"""Work outside the frame path: on every n-th frame, on a thread of its own, never waited for."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from queue import SimpleQueue
from typing import Any, Protocol, TypedDict

from avq.bundle import OpenBundle
from avq.daemon.events import EventQueue
from avq.process import lower_thread_priority
from avq.redaction import redact
from avq.types import Detections, Frame, Published
from avq.types.frame import Event

_JOIN_S = 10.0


class ShadowState(TypedDict, total=False):
    """Agreement of a candidate with the serving bundle; the keys of kind "shadow_report"."""

    candidate: str
    serving: str
    frames: int
    boxes: int
    agreement: float | None
    lost: int
    added: int
    confidence_shift: float | None
    service_p50_ms: float


class _Finding(TypedDict):
    kind: str
    reason: str


class Finding(_Finding, ShadowState, total=False):
    """An event of a side task without its time and camera; the last five keys are those of drift events."""

    share: float
    occupancy: float
    unusual_pictures: int
    pictures: int
    limit: int


class SideTaskEvent(Event, Finding):
    """A finding with its time and, where it concerns one, its camera."""

    camera: str


class SideTask(Protocol):
    """Work on single frames; all methods are called on the worker's thread."""

    def examine(self, frame: Frame, detections: Detections, bundle: str) -> list[Finding]:
        """Examine one frame.

        Args:
            frame: with a copy of its pixels.
            detections: as published for this frame.
            bundle: digest of the bundle that produced them.
        """
        ...

    def on_bundle(self, bundle: OpenBundle) -> None:
        """Another bundle serves from now on."""
        ...

    def state(self) -> Mapping[str, Any]:
        """Results so far, as JSON values."""
        ...

    def close(self) -> None: ...


class SideTaskWorker:
    """Gives a task every n-th published frame of each camera while it is idle, and counts the frames it skips.

    Args:
        name: "shadow" or "drift", for events.
        every_n: counted per camera.
        task: used and closed on the worker's thread only.
        in_spare_time: examine frames only while the best mode holds its deadline.
    """

    def __init__(self, name: str, every_n: int, task: SideTask, *, in_spare_time: bool = False) -> None:
        self.name = name
        self.error = ""
        self.events = EventQueue()
        self.skipped = 0  # due frames while the task was busy, or no spare time was left
        self._every_n = every_n
        self._task = task
        self._in_spare_time = in_spare_time
        self._counts: Counter[str] = Counter()
        self._state: Mapping[str, Any] = task.state()
        self._work: SimpleQueue[tuple[Frame, Published] | OpenBundle | None] = SimpleQueue()
        self._idle = True
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def on_frame(self, frame: Frame, published: Published, *, relaxed: bool) -> None:
        """Queue a published frame when it is due; only then are its pixels copied.

        Args:
            frame: valid during the call.
            published: the message of this frame.
            relaxed: the best mode holds its deadline.
        """
        due = self._counts[frame.camera] % self._every_n == 0
        self._counts[frame.camera] += 1
        if not due or self.error:
            return
        if not self._idle or (self._in_spare_time and not relaxed):
            self.skipped += 1
            self._counts[frame.camera] -= 1  # the next frame is due instead
            return
        self._idle = False
        self._work.put((replace(frame, pixels=frame.pixels.copy()), published))

    def on_bundle(self, bundle: OpenBundle) -> None:
        """Another bundle serves from now on."""
        self._work.put(bundle)

    def state(self) -> Mapping[str, Any]:
        """Results so far, the skipped frames and the error that ended the task; from any thread."""
        return {
            **self._state,
            "skipped": self.skipped,
            **({"error": redact(self.error)} if self.error else {}),
        }

    def _run(self) -> None:
        lower_thread_priority()
        while (item := self._work.get()) is not None:
            try:
                self._process(item)
            except Exception as error:  # a side task must not end the run
                self.error = " ".join(f"{type(error).__name__}: {error}".split())
                self.events.put(
                    {"t_ns": time.monotonic_ns(), "kind": f"{self.name}_failed", "reason": self.error}
                )
            self._idle = True
        with suppress(Exception):
            self._task.close()

    def _process(self, item: tuple[Frame, Published] | OpenBundle) -> None:
        if isinstance(item, OpenBundle):
            self.error = ""
            self._task.on_bundle(item)
            self._state = self._task.state()
            return
        frame, published = item
        findings = self._task.examine(frame, published.detections, published.bundle_digest)
        self._state = self._task.state()
        for finding in findings:
            event: SideTaskEvent = {"t_ns": time.monotonic_ns(), "camera": frame.camera, **finding}
            self.events.put(event)

    def close(self) -> None:
        """End after the frame that is being examined."""
        self._work.put(None)
        self._thread.join(_JOIN_S)
