"""Time as integer nanoseconds of one monotonic clock; replay supplies its own."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of monotonic time in nanoseconds."""

    def now_ns(self) -> int:
        """Return monotonic time in nanoseconds; only differences have a meaning."""
        ...


class SystemClock:
    """The machine's monotonic clock, shared by every process on it (Linux CLOCK_MONOTONIC)."""

    def now_ns(self) -> int:
        """Return ``time.monotonic_ns()``."""
        return time.monotonic_ns()


class ReplayClock:
    """A clock that moves only when its caller moves it: the same log gives the same decisions."""

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        """Return the time that the last move set, in nanoseconds."""
        return self._now_ns

    def advance_to(self, t_ns: int) -> None:
        """Move forward to ``t_ns``; a time in the past is ignored, the clock never runs back."""
        self._now_ns = max(self._now_ns, t_ns)

    def advance_by(self, delta_ns: int) -> None:
        """Move forward by ``delta_ns`` >= 0 nanoseconds."""
        self.advance_to(self._now_ns + delta_ns)
