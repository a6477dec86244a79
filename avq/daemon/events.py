"""Events of worker threads on their way to the loop, which hands them to the sinks."""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, SimpleQueue

from avq.types.frame import Event


class EventQueue:
    """Filled by any thread, emptied by one; no call blocks."""

    def __init__(self) -> None:
        self._events: SimpleQueue[Event] = SimpleQueue()

    def put(self, event: Event) -> None:
        self._events.put(event)

    def next(self) -> Event | None:
        """Take the oldest event; None when there is none."""
        try:
            return self._events.get_nowait()
        except Empty:
            return None

    def drain(self, handle: Callable[[Event], None]) -> None:
        """Call ``handle`` with every queued event, oldest first."""
        while (event := self.next()) is not None:
            handle(event)
