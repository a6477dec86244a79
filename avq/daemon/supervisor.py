"""Supervision of one camera: when it is stalled, when its capture process is restarted. Pure, without a clock.

Silence is counted between checks: time without checks (a suspended machine, a starved daemon) counts only up to the
moment the next check was due, so a late check alone never ends a capture process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

#: Silence of so many frame periods is reported: one missing frame is not, two are.
REPORT_PERIODS = 2.5
_REPORT_LEAST_NS = 40_000_000  # a busy machine's scheduling is no stall of a fast camera
_REPLACE_PERIODS = 6.0
_REPLACE_AFTER_REPORT_NS = 500_000_000
#: Twice the longest gap that this source got over by itself: jitter is no stall.
_GAP_FACTOR = 2.0
_GAPS = 30
_GAPS_TO_KNOW = 5
_GAP_MEMORY = 256
#: A gap that came so often is usual for this source: silence is reported after half as much again.
_USUAL_TIMES = 3
_USUAL_FACTOR = 1.5
_DEFAULT_PERIOD_NS = 1_000_000_000 // 30
_START_ALLOWANCE_NS = 10_000_000_000  # a fresh interpreter on a loaded machine, beyond the open time-out
_OPEN_REPORT_NS = 2_000_000_000
_CHECK_NS = 100_000_000
_UNCHECKED_NS = 1_000_000_000  # ten checks: the thread that checks is stuck
_BACKOFF_NS = (0, 250_000_000, 500_000_000, 1_000_000_000, 2_000_000_000, 4_000_000_000, 8_000_000_000)
_HEALTHY_FRAMES = 30
_NS = 1_000_000_000

State = Literal["opening", "open", "ending", "waiting", "ended"]
Kind = Literal[
    "kill",
    "start",
    "camera_stalled",
    "camera_restarted",
    "camera_resumed",
    "camera_dead",
    "camera_unsteady",
    "camera_steady",
]


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How a live camera is restarted.

    Attributes:
        reconnect: False: the first failure is the camera's end.
        max_restarts: at most so many within ``window_s`` that brought no frame; then it is reported dead until the
            window has room.
        window_s: seconds.
    """

    reconnect: bool = True
    max_restarts: int = 8
    window_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Action:
    """An action of the receiver: "kill", "start", or an event of any other kind to report.

    Attributes:
        counts: kind -> events that were not reported one by one, of a summary.
    """

    kind: Kind
    cause: str = ""
    reason: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)


class FrameIntervals:
    """Frame intervals of a source, and the longest gaps it recovered from by itself."""

    def __init__(self) -> None:
        self.frames = 0
        self.declared = False
        self._nominal_ns = _DEFAULT_PERIOD_NS
        self._gaps_ns: deque[int] = deque(maxlen=_GAPS)
        self._long_ns: deque[int] = deque(maxlen=_GAP_MEMORY)
        self._last_ns: int | None = None
        self._usual_ns: int | None = None

    def on_open(self, fps: float) -> None:
        """Start anew: the first frame of a capture process has no interval."""
        self.frames, self._last_ns = 0, None
        self.declared = fps > 0
        if self.declared:
            self._nominal_ns = int(_NS / fps)

    def on_frame(self, now_ns: int) -> None:
        self.frames += 1
        if self._last_ns is not None:
            self._gaps_ns.append(now_ns - self._last_ns)
            self._long_ns.append(now_ns - self._last_ns)
            self._usual_ns = None
        self._last_ns = now_ns

    @property
    def measured(self) -> bool:
        """Whether an interval was measured: declared rates may be wrong (MJPEG over HTTP always declares 25)."""
        return bool(self._gaps_ns)

    @property
    def period_ns(self) -> int:
        """Mean of the last intervals (the median of bursts is 0); before, the longest or the declared one."""
        known = self._gaps_ns
        if len(known) < _GAPS_TO_KNOW:
            return max(self._nominal_ns, *known, 0)
        return max(sum(known) // len(known), 1_000_000)

    @property
    def longest_gap_ns(self) -> int:
        return max(self._long_ns, default=0)

    @property
    def usual_gap_ns(self) -> int:
        """The gap that came three times among the last intervals: bursts and jitter, but no single outage."""
        if self._usual_ns is None:
            known = sorted(self._long_ns)
            self._usual_ns = known[-_USUAL_TIMES] if len(known) >= _USUAL_TIMES else 0
        return self._usual_ns


class Supervisor:
    """State of one camera. Every method takes the time; ``actions()`` returns what is due by then.

    Args:
        policy: limit of restarts.
        open_timeout_ns, read_timeout_ns: of the source; a process that exceeds them is ended.
        now_ns: start of the first capture process.
    """

    def __init__(
        self, policy: RestartPolicy, *, open_timeout_ns: int, read_timeout_ns: int, now_ns: int
    ) -> None:
        self.intervals = FrameIntervals()
        self.state: State = "opening"
        self.live = False
        self.ever_opened = False
        self.exhausted = False  # the limit was reached, and no frame has come since
        self.restarts = 0
        self.cause = ""
        self._policy = policy
        self._open_timeout_ns = open_timeout_ns
        self._read_timeout_ns = read_timeout_ns
        self._silence_ns = 0
        self._checked_ns = now_ns
        self._start_at_ns = 0
        self._outage_ns: int | None = None  # when the camera was reported stalled
        self._failures = 0  # starts in a row without lasting success
        self._started: deque[int] = deque()
        self._pending: list[Action] = []

    def on_open(self, *, live: bool, fps: float, now_ns: int) -> None:
        """Record that the source is open."""
        self.state, self.live, self.ever_opened = "open", live, True
        self.intervals.on_open(fps)
        self._reset_silence(now_ns)

    def on_frame(self, now_ns: int) -> None:
        """Record a frame, also one that was dropped at capture."""
        self.intervals.on_frame(now_ns)
        self._reset_silence(now_ns)
        if self.state != "open":  # sent by a process before it was killed
            return
        self.exhausted = False
        if self.intervals.frames == 1 and self._started:  # a restart that brought pictures has not failed
            self._started.pop()
        if self._outage_ns is not None:
            away_ms = (now_ns - self._outage_ns) / 1e6
            self._add("camera_resumed", self.cause, f"frames again after {away_ms:.0f} ms ({self.cause})")
            self._outage_ns = None
        if self.intervals.frames == _HEALTHY_FRAMES:
            self._failures = 0

    def _reset_silence(self, now_ns: int) -> None:
        self._silence_ns, self._checked_ns = 0, now_ns

    def on_failure(self, cause: str, reason: str, now_ns: int) -> None:
        """Report that the process ends by itself; ``on_exit`` follows when it has ended."""
        if self._policy.reconnect:
            self._stalled(cause, reason, now_ns)
        self.state, self.cause = "ending", cause

    def on_exit(self, cause: str, reason: str, now_ns: int, *, again: bool) -> None:
        """Record the end of the process; without ``again`` the camera has ended too."""
        if not (again and self._policy.reconnect):
            self.state = "ended"
            return
        self._stalled(self.cause if self.state == "ending" else cause, reason, now_ns)
        self.state = "waiting"
        self._start_at_ns = now_ns + _BACKOFF_NS[min(self._failures, len(_BACKOFF_NS) - 1)]
        self._limit_restarts(now_ns)

    def _limit_restarts(self, now_ns: int) -> None:
        """Delay the next start while the window holds ``max_restarts`` starts."""
        window_ns = int(self._policy.window_s * _NS)
        while self._started and self._started[0] <= now_ns - window_ns:
            self._started.popleft()
        if len(self._started) < self._policy.max_restarts:
            return
        self._start_at_ns = max(self._start_at_ns, self._started[0] + window_ns)
        if not self.exhausted:
            wait_s = (self._start_at_ns - now_ns) / _NS
            limit = f"{len(self._started)} restarts within {self._policy.window_s:g} s"
            self._add("camera_dead", self.cause, f"{limit} failed; the next one is in {wait_s:.0f} s")
        self.exhausted = True

    def _stalled(self, cause: str, reason: str, now_ns: int) -> None:
        self.cause = cause
        if self._outage_ns is None:
            self._outage_ns = now_ns
            self._add("camera_stalled", cause, reason)

    def _add(self, kind: Kind, cause: str, reason: str) -> None:
        self._pending.append(Action(kind, cause, reason))

    @property
    def condition(self) -> str:
        """The state for people: "delivering", "silent", "opening", "restarting", "dead" or "ended"."""
        if self.state == "ended":
            return "ended"
        if self.exhausted:
            return "dead"
        if self.state == "open":
            return "silent" if self.away else "delivering"
        return "opening" if self.state == "opening" else "restarting"

    @property
    def away(self) -> bool:
        """Whether it delivers no frames and that was reported."""
        return self._outage_ns is not None

    def silence_explained(self, now_ns: int) -> bool:
        """Whether the absence of frames is reported or not due yet; False when checks stopped."""
        if now_ns - self._checked_ns > _UNCHECKED_NS:
            return False
        waits_for_file = self.state == "open" and not self.live
        return not waits_for_file or self._silence_ns < self._read_timeout_ns

    def actions(
        self, now_ns: int, *, held: bool = False, busy: Callable[[], bool] = lambda: False
    ) -> list[Action]:
        """Return the actions that are due.

        Args:
            now_ns: monotonic.
            held: the process waits for a free slot, so its silence is not the camera's.
            busy: whether the process is computing or waiting for a processor: it gets the read time-out then.
        """
        self._count_silence(now_ns, held)
        if self.state == "open" and self.live:
            self._watch_frames(now_ns, busy)
        elif self.state == "opening":
            self._watch_open(now_ns)
        elif self.state == "waiting" and now_ns >= self._start_at_ns:
            self._start(now_ns)
        actions, self._pending = self._pending, []
        return actions

    def _count_silence(self, now_ns: int, held: bool) -> None:
        if not held:
            self._silence_ns += min(now_ns, self.due_ns) - self._checked_ns
        self._checked_ns = now_ns

    def _watch_frames(self, now_ns: int, busy: Callable[[], bool]) -> None:
        silent_ms = self._silence_ns / 1e6
        if self._silence_ns >= self._report_after_ns:
            periods = self._silence_ns / self.intervals.period_ns
            reason = f"no frame for {silent_ms:.0f} ms, {periods:.1f} frame periods"
            self._stalled("silent", reason, now_ns)
        hopeless = self._silence_ns >= max(self._read_timeout_ns, self._replace_after_ns)
        if hopeless or (self._silence_ns >= self._replace_after_ns and not busy()):
            self._end("silent")

    def _watch_open(self, now_ns: int) -> None:
        if self._silence_ns >= min(_OPEN_REPORT_NS, self._open_timeout_ns):
            self._stalled("not open", f"not open after {self._silence_ns / 1e9:.1f} s", now_ns)
        if self._silence_ns >= self._open_timeout_ns + _START_ALLOWANCE_NS:
            self._end("open hangs")

    def _end(self, cause: str) -> None:
        self.state, self.cause = "ending", cause
        self._add("kill", cause, "")

    def _start(self, now_ns: int) -> None:
        self.state = "opening"
        self._failures += 1
        self.restarts += 1
        self._started.append(now_ns)
        self._reset_silence(now_ns)
        self._add("start", self.cause, "")
        self._add("camera_restarted", self.cause, f"restart {self.restarts} ({self.cause})")

    @property
    def _report_after_ns(self) -> int:
        """Longer before the first frame: sensors settle, streams wait for a key frame."""
        periods_ns = int(REPORT_PERIODS * self.intervals.period_ns)
        expected = self.intervals.frames and (self.intervals.declared or self.intervals.measured)
        usual_ns = min(int(_USUAL_FACTOR * self.intervals.usual_gap_ns), self._read_timeout_ns)
        return max(periods_ns, usual_ns, _REPORT_LEAST_NS if expected else _NS)

    @property
    def _replace_after_ns(self) -> int:
        report_ns, period_ns = self._report_after_ns, self.intervals.period_ns
        if not (self.intervals.frames and self.intervals.measured):
            return max(self._read_timeout_ns, report_ns)
        patience_ns = max(_REPLACE_PERIODS * period_ns, _GAP_FACTOR * self.intervals.longest_gap_ns)
        least_ns = report_ns + _REPLACE_AFTER_REPORT_NS
        return int(max(least_ns, min(patience_ns, self._read_timeout_ns)))

    @property
    def due_ns(self) -> int:
        """When ``actions`` must be called next, unless something happens before."""
        if self.state == "waiting":
            return self._start_at_ns
        limit_ns = self._checked_ns + _CHECK_NS
        if self.state == "open" and self.live:
            for after_ns in (self._report_after_ns, self._replace_after_ns):
                if self._silence_ns < after_ns:
                    return min(limit_ns, self._checked_ns + after_ns - self._silence_ns)
        return limit_ns
