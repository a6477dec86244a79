"""Reports of one camera: changes of its state are reported, repeated ones are counted. Pure, without a clock.

At most 20 lines an hour: four outages at once and one in half an hour after that, a summary of the others in a
quarter of an hour, one outage that lasts, and one camera_dead.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from avq.daemon.supervisor import Action

_S = 1_000_000_000
BURST_OUTAGES = 4
REFILL_NS = 1800 * _S
SUMMARY_NS = 900 * _S
#: An outage that was only counted is reported when it lasts so long, and camera_dead, once an hour each.
LASTING_NS = 60 * _S
RARE_NS = 3600 * _S
#: Restarts reported per outage.
RESTARTS = 3


class CameraReports:
    """Decides which actions of a supervisor are reported; "kill" and "start" always pass."""

    def __init__(self) -> None:
        self._outages = float(BURST_OUTAGES)  # that may be reported now
        self._refilled_ns: int | None = None
        self._unsteady_since_ns: int | None = None
        self._summary_at_ns = 0
        self._counts: Counter[str] = Counter()  # not reported since the last summary
        self._longest_ns = 0
        self._outage: Action | None = None  # that lasts now
        self._outage_ns = 0
        self._reported = False  # whether it was reported
        self._restarts = 0  # of this outage
        self._rare_ns: dict[str, int] = {}

    def take(self, action: Action, now_ns: int) -> list[Action]:
        """Return what to do and report for one action of the supervisor."""
        if action.kind == "camera_stalled":
            return self._stalled(action, now_ns)
        if action.kind == "camera_resumed":
            return self._resumed(action, now_ns)
        if action.kind == "camera_restarted":
            self._restarts += 1
            if self._reported and self._restarts <= RESTARTS:
                return [action]
        elif action.kind != "camera_dead" or self._is_rare("camera_dead", now_ns):
            return [action]
        return self._count(action, now_ns)

    def due(self, now_ns: int) -> list[Action]:
        """Return what is due without an action: a lasting outage, or the summary of a quarter of an hour."""
        lasts = self._outage is not None and now_ns - self._outage_ns >= LASTING_NS
        if self._outage is not None and lasts and not self._reported and self._is_rare("lasting", now_ns):
            self._reported = True
            away_s = (now_ns - self._outage_ns) / _S
            return [replace(self._outage, reason=f"{self._outage.reason}; away for {away_s:.0f} s")]
        if self._unsteady_since_ns is None or now_ns < self._summary_at_ns:
            return []
        return [self._summary(now_ns)]

    def last(self, now_ns: int) -> list[Action]:
        """Return the summary of what was counted and not reported yet, when the camera ends."""
        return [self._summary(now_ns)] if self._counts else []

    def _stalled(self, action: Action, now_ns: int) -> list[Action]:
        self._outage, self._outage_ns, self._restarts = action, now_ns, 0
        self._refill(now_ns)
        self._reported = self._outages >= 1
        if self._reported:
            self._outages -= 1
            return [action]
        return self._count(action, now_ns)

    def _resumed(self, action: Action, now_ns: int) -> list[Action]:
        self._longest_ns = max(self._longest_ns, now_ns - self._outage_ns if self._outage is not None else 0)
        self._outage, reported, self._reported = None, self._reported, False
        return [action] if reported else []

    def _count(self, action: Action, now_ns: int) -> list[Action]:
        """Count an action that is not reported; the first one reports that from now on they are counted."""
        self._counts[action.kind] += 1
        if self._unsteady_since_ns is not None:
            return []
        self._unsteady_since_ns, self._summary_at_ns = now_ns, now_ns + SUMMARY_NS
        reason = f"unsteady ({action.cause}): further changes are counted, and reported every 15 minutes"
        return [Action("camera_unsteady", action.cause, reason)]

    def _summary(self, now_ns: int) -> Action:
        counts, self._counts = dict(self._counts), Counter()
        longest_s, self._longest_ns = self._longest_ns / _S, 0
        self._summary_at_ns = now_ns + SUMMARY_NS
        if not counts:
            self._unsteady_since_ns = None
            return Action("camera_steady", "", "steady: no change within 15 minutes")
        names = ", ".join(f"{count} {_WORDS[kind]}" for kind, count in sorted(counts.items()))
        away_s = (now_ns - self._outage_ns) / _S
        now = "it delivers now" if self._outage is None else f"it has been away for {away_s:.0f} s"
        reason = f"since the last report {names}, the longest outage {longest_s:.1f} s; {now}"
        return Action("camera_unsteady", "", reason, counts)

    def _refill(self, now_ns: int) -> None:
        if self._refilled_ns is not None:
            self._outages = min(BURST_OUTAGES, self._outages + (now_ns - self._refilled_ns) / REFILL_NS)
        self._refilled_ns = now_ns

    def _is_rare(self, kind: str, now_ns: int) -> bool:
        last_ns = self._rare_ns.get(kind)
        if last_ns is not None and now_ns - last_ns < RARE_NS:
            return False
        self._rare_ns[kind] = now_ns
        return True


_WORDS = {"camera_stalled": "outages", "camera_restarted": "restarts", "camera_dead": "times given up"}
