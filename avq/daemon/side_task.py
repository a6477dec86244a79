"""Work beside the frame path: on every n-th frame, on a thread of its own, and never waited for."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from queue import SimpleQueue
from typing import Any, Protocol

from avq.bundle import OpenBundle
from avq.daemon.events import EventQueue
from avq.process import lower_thread_priority
from avq.types import Detections, Frame, Published

_END_S = 10.0


class SideTask(Protocol):
    """What an aside does; all of it on the aside's thread."""

    def look(self, frame: Frame, served: Detections, bundle: str) -> list[dict[str, Any]]:
        """One frame, and what ``bundle`` found in it; returns events (kind, reason, ...)."""
        ...

    def serves(self, bundle: OpenBundle) -> None:
        """Another bundle is in service from here on."""
        ...

    def state(self) -> Mapping[str, Any]:
        """What was found so far, as JSON values."""
        ...

    def close(self) -> None: ...


class SideTaskWorker:
    """Gives a worker every n-th published frame of each camera while it is idle; what it was busy for is counted.

    Args:
        name: "shadow" or "drift", for events.
        every_n: counted per camera.
        worker: used and closed on the aside's thread only; ``state`` from any.
        in_spare_time: look only while the best work is done in time.
    """

    def __init__(self, name: str, every_n: int, worker: SideTask, *, in_spare_time: bool = False) -> None:
        self.name = name
        self.error = ""
        self.events = EventQueue()
        self.skipped = 0  # frames whose turn it was while the worker was busy, or there was no time to spare
        self._every_n = every_n
        self._worker = worker
        self._in_spare_time = in_spare_time
        self._counts: Counter[str] = Counter()
        self._state: Mapping[str, Any] = worker.state()
        self._work: SimpleQueue[tuple[Frame, Published] | OpenBundle | None] = SimpleQueue()
        self._idle = True
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def on_frame(self, frame: Frame, published: Published, *, relaxed: bool) -> None:
        """One frame was published: its pixels are copied when they are looked at."""
        due = self._counts[frame.camera] % self._every_n == 0
        self._counts[frame.camera] += 1
        if not due or self.error:
            return
        if not self._idle or (self._in_spare_time and not relaxed):
            self.skipped += 1
            self._counts[frame.camera] -= 1  # the next frame's turn
            return
        self._idle = False
        self._work.put((replace(frame, pixels=frame.pixels.copy()), published))

    def serves(self, bundle: OpenBundle) -> None:
        """Another bundle is in service."""
        self._work.put(bundle)

    def state(self) -> Mapping[str, Any]:
        """From any thread."""
        return {**self._state, "skipped": self.skipped, **({"error": self.error} if self.error else {})}

    def _run(self) -> None:
        lower_thread_priority()
        while (item := self._work.get()) is not None:
            try:
                self._do(item)
            except Exception as error:  # what is wrong beside the frame path stays there
                self.error = " ".join(f"{type(error).__name__}: {error}".split())
                self._put({"kind": f"{self.name}_failed", "reason": self.error})
            self._idle = True
        with suppress(Exception):
            self._worker.close()

    def _do(self, item: tuple[Frame, Published] | OpenBundle) -> None:
        if isinstance(item, OpenBundle):
            self.error = ""
            self._worker.serves(item)
            self._state = self._worker.state()
            return
        frame, published = item
        events = self._worker.look(frame, published.detections, published.bundle_digest)
        self._state = self._worker.state()
        for event in events:
            self._put({"camera": frame.camera, **event})

    def _put(self, event: Mapping[str, Any]) -> None:
        self.events.put({"t_ns": time.monotonic_ns(), **event})

    def close(self) -> None:
        """End after the frame that is being looked at."""
        self._work.put(None)
        self._thread.join(_END_S)
