"""Events that other threads leave for the loop, which tells them in its own time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from queue import Empty, SimpleQueue
from typing import Any


class EventQueue:
    """Put by any thread, taken by one; nothing here waits."""

    def __init__(self) -> None:
        self._events: SimpleQueue[dict[str, Any]] = SimpleQueue()

    def put(self, event: Mapping[str, Any]) -> None:
        self._events.put(dict(event))

    def next(self) -> dict[str, Any] | None:
        """The next thing to tell; None when there is no more."""
        try:
            return self._events.get_nowait()
        except Empty:
            return None

    def drain(self, tell: Callable[[dict[str, Any]], None]) -> None:
        """Hand on what is there."""
        while (event := self.next()) is not None:
            tell(event)
