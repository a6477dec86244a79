"""Time as integer nanoseconds of one monotonic clock; replay supplies its own. Unix time is an offset from it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
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


_READ_EVERY_NS = 100_000_000
#: The reading of two clocks is repeated when the thread was interrupted in between.
_READINGS = 5
_QUICK_NS = 100_000
#: A smaller difference is the jitter of reading.
_LEAST_STEP_NS = 5_000_000


def _boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class ClockStep:
    """A change of Unix time against monotonic time.

    Attributes:
        step_ns: forward is positive.
        suspended_ns: part of it during which the machine was suspended: the monotonic clock stood still.
    """

    step_ns: int
    suspended_ns: int

    @property
    def reason(self) -> str:
        """One line of text."""
        set_ns = self.step_ns - self.suspended_ns
        parts = []
        if self.suspended_ns:
            parts.append(f"the machine was suspended for {self.suspended_ns / 1e9:.1f} s")
        if abs(set_ns) >= _LEAST_STEP_NS:
            direction = "forward" if set_ns > 0 else "back"
            parts.append(f"the clock was set {direction} by {abs(set_ns) / 1e9:.3f} s")
        return " and ".join(parts)


class UnixClock:
    """Unix time of monotonic times: an offset that is read again, as clocks are set and machines are suspended.

    Any thread may use it.

    Args:
        wall_ns, monotonic_ns, boot_ns: the clocks; by default those of the machine.
    """

    def __init__(
        self,
        wall_ns: Callable[[], int] | None = None,
        monotonic_ns: Callable[[], int] | None = None,
        boot_ns: Callable[[], int] = _boot_ns,
    ) -> None:
        self._wall_ns = wall_ns or time.time_ns
        self._monotonic_ns = monotonic_ns or time.monotonic_ns
        self._boot_ns = boot_ns
        self._lock = threading.Lock()
        self._read_ns = self._monotonic_ns()
        self._offset_ns = self._read_offset_ns()

    def offset_ns(self) -> int:
        """Return Unix minus monotonic time, at most 100 ms old."""
        with self._lock:
            now_ns = self._monotonic_ns()
            if not 0 <= now_ns - self._read_ns < _READ_EVERY_NS:
                self._read_ns = now_ns
                offset_ns = self._read_offset_ns()
                if abs(offset_ns - self._offset_ns) >= _LEAST_STEP_NS:
                    self._offset_ns = offset_ns
            return self._offset_ns

    def suspended_ns(self) -> int:
        """Return how long the machine has been suspended since it was started."""
        return self._boot_ns() - self._monotonic_ns()

    def _read_offset_ns(self) -> int:
        best_ns, offset_ns = 1 << 62, 0
        for _ in range(_READINGS):
            before_ns = self._monotonic_ns()
            unix_ns = self._wall_ns()
            spent_ns = self._monotonic_ns() - before_ns
            if spent_ns < best_ns:
                best_ns, offset_ns = spent_ns, unix_ns - before_ns - spent_ns // 2
            if best_ns < _QUICK_NS:
                break
        return offset_ns


#: The clock of this machine.
UNIX_CLOCK = UnixClock()


class ClockWatch:
    """Finds steps of Unix time since the last look.

    Args:
        clock: to watch.
        least_ns: smaller steps are not returned.
    """

    def __init__(self, clock: UnixClock | None = None, least_ns: int = 100_000_000) -> None:
        self._clock = clock or UNIX_CLOCK
        self._least_ns = least_ns
        self._offset_ns = self._clock.offset_ns()
        self._suspended_ns = self._clock.suspended_ns()

    def look(self) -> ClockStep | None:
        """Return the step since the last one; None when there was none."""
        step_ns = self._clock.offset_ns() - self._offset_ns
        if abs(step_ns) < self._least_ns:
            return None
        suspended_ns = self._clock.suspended_ns() - self._suspended_ns
        self._offset_ns += step_ns
        self._suspended_ns += suspended_ns
        return ClockStep(step_ns, suspended_ns if suspended_ns >= self._least_ns else 0)
