"""Steady memory growth of the daemon and its capture processes, reported before memory runs out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from statistics import median

from avq.process import resident_bytes
from avq.types.frame import MemoryEvent

SAMPLE_S = 10.0
_BLOCKS = 6
_BLOCK_SAMPLES = 60  # ten minutes: an hour decides
#: Less growth over the hour is normal: caches fill, fragments settle.
_LEAST_BYTES = 16 << 20
_MB = 1 << 20


class MemoryTrend:
    """Samples of one process. Growth is steady when each block of samples lies above the block before."""

    def __init__(self) -> None:
        self._samples: list[int] = []

    def add(self, resident_bytes: int) -> int | None:
        """Add a sample.

        Returns:
            Bytes of growth over an hour of steady growth, once per hour; else None.
        """
        self._samples.append(resident_bytes)
        if len(self._samples) < _BLOCKS * _BLOCK_SAMPLES:
            return None
        levels = [
            median(self._samples[start : start + _BLOCK_SAMPLES])
            for start in range(0, len(self._samples), _BLOCK_SAMPLES)
        ]
        del self._samples[:_BLOCK_SAMPLES]
        grown = int(levels[-1] - levels[0])
        steady = all(a < b for a, b in pairwise(levels))
        if not steady or grown < _LEAST_BYTES:
            return None
        self._samples.clear()
        return grown * _BLOCKS // (_BLOCKS - 1)  # the first and the last level are five blocks apart


class MemoryWatch:
    """Samples the daemon and its capture processes.

    Args:
        pids: capture process per camera.
        now_s: monotonic seconds.
        resident: process id -> resident bytes, None when the process has ended.
    """

    def __init__(
        self,
        pids: Callable[[], Mapping[str, int]],
        now_s: Callable[[], float] = time.monotonic,
        resident: Callable[[int], int | None] = resident_bytes,
    ) -> None:
        self._pids = pids
        self._now_s = now_s
        self._resident = resident
        self._due_s = now_s()
        self._trends: dict[tuple[str, int], MemoryTrend] = {}

    def sample(self) -> list[MemoryEvent]:
        """Take a sample when one is due; events come at most once per process and hour."""
        if self._now_s() < self._due_s:
            return []
        self._due_s += max(SAMPLE_S, self._now_s() - self._due_s)
        processes = {
            ("daemon", os.getpid()),
            *((f"capture of {name}", pid) for name, pid in self._pids().items()),
        }
        self._trends = {process: self._trends.get(process, MemoryTrend()) for process in processes}
        events = (self._sample_process(*process, trend) for process, trend in self._trends.items())
        return [event for event in events if event is not None]

    def _sample_process(self, name: str, pid: int, trend: MemoryTrend) -> MemoryEvent | None:
        now = self._resident(pid)
        grown = None if now is None else trend.add(now)
        if now is None or grown is None:
            return None
        return {
            "kind": "memory_grows",
            "t_ns": time.monotonic_ns(),
            "process": name,
            "resident_mb": round(now / _MB, 1),
            "mb_per_hour": round(grown / _MB, 1),
            "reason": f"{name} grew steadily by {grown / _MB:.0f} MB within an hour, to {now / _MB:.0f} MB",
        }
