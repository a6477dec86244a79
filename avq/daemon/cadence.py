"""How often frames come, told from the frames themselves: pure, so replay measures the same."""

from __future__ import annotations

from collections import deque
from statistics import median

_INTERVALS = 15
#: A camera that is not among so many last served frames is not there any more.
_RECENT = 16


class Cadence:
    """Frame periods of the live cameras, from capture times and sequence numbers.

    Sequence numbers count dropped frames too, so dropping does not make a camera look slower.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, int]] = {}
        self._intervals_ns: dict[str, deque[float]] = {}
        self._recent: deque[str] = deque(maxlen=_RECENT)

    def saw(self, camera: str, seq: int, t_capture_ns: int) -> None:
        """One more frame of a live camera."""
        last = self._last.get(camera)
        self._last[camera] = seq, t_capture_ns
        self._recent.append(camera)
        if last is not None and seq > last[0]:
            known = self._intervals_ns.setdefault(camera, deque(maxlen=_INTERVALS))
            known.append((t_capture_ns - last[1]) / (seq - last[0]))

    @property
    def recent(self) -> set[str]:
        """Live cameras that are being served."""
        return set(self._recent)

    @property
    def cameras(self) -> int:
        """How many, at least 1."""
        return max(1, len(self.recent))

    @property
    def period_ns(self) -> float:
        """Of the fastest camera being served; 0 while unknown, and for files."""
        known = [median(self._intervals_ns[c]) for c in self.recent if c in self._intervals_ns]
        return min(known, default=0.0)
