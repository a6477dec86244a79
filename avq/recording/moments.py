"""The seconds around budget misses, out of a stream of frames: what ``log_on = "miss"`` keeps."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from avq.recording.writer import Entry

#: What waits in memory for a miss, at most.
LIMIT_BYTES = 128 * 1024 * 1024


class AroundMisses:
    """Holds frames back until one near them is late.

    Args:
        before_ns, after_ns: kept around each miss.
        limit_bytes: of frames that wait; the oldest go first.
    """

    def __init__(self, before_ns: int, after_ns: int, limit_bytes: int = LIMIT_BYTES) -> None:
        self._before_ns = before_ns
        self._after_ns = after_ns
        self._limit_bytes = limit_bytes
        self._waiting: deque[tuple[int, Sequence[Entry]]] = deque()
        self._bytes = 0
        self._until_ns: int | None = None

    def take(self, frame: Sequence[Entry], t_ns: int, *, miss: bool) -> list[Entry]:
        """What is to be written now that this frame came: nothing, the frame, or all that led to a miss."""
        self._drop_older_than(t_ns - self._before_ns)
        if miss:
            self._until_ns = t_ns + self._after_ns
        if self._until_ns is None or t_ns > self._until_ns:
            self._waiting.append((t_ns, frame))
            self._bytes += _size(frame)
            return []
        led_here = [one for _, entries in self._waiting for one in entries]
        self._waiting.clear()
        self._bytes = 0
        return [*led_here, *frame]

    def _drop_older_than(self, t_ns: int) -> None:
        while self._waiting and (self._waiting[0][0] < t_ns or self._bytes > self._limit_bytes):
            self._bytes -= _size(self._waiting.popleft()[1])


def _size(entries: Sequence[Entry]) -> int:
    return sum(len(one.data) for one in entries)
