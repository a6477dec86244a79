"""The sign of life, from the publish path only: it stops when publication stops, whatever else still runs."""

from __future__ import annotations

import time
from collections.abc import Callable

from avq.daemon.notify import Notifier
from avq.daemon.pipeline import Pipeline

#: Signs of life per interval of the watchdog: systemd asks for two, one more may be lost.
_PER_INTERVAL = 4.0
_STATUS_S = 2.0


class Heart:
    """Beats after a published frame, and where it is accounted for that none can be.

    Args:
        notifier: who is told.
        now_s: monotonic seconds.
    """

    def __init__(self, notifier: Notifier, now_s: Callable[[], float] = time.monotonic) -> None:
        self._notifier = notifier
        self._now_s = now_s
        self._beat_every_s = notifier.watchdog_s / _PER_INTERVAL if notifier.watchdog_s else float("inf")
        self._told_s = now_s()
        self._beat_s = self._told_s if notifier.watchdog_s else float("inf")  # when the next one is due
        self._frames = 0

    def published(self, pipeline: Pipeline) -> None:
        """One frame went out."""
        self._frames += 1
        now_s = self._now_s()
        if now_s >= self._beat_s:
            self._beat(now_s)
        if now_s - self._told_s >= _STATUS_S:
            self._tell(pipeline, now_s)

    def idle(self, accounted: Callable[[], bool]) -> None:
        """No frame came. ``accounted``: nothing waits, and for every camera it is known why or not yet due."""
        now_s = self._now_s()
        if now_s >= self._beat_s and accounted():
            self._beat(now_s)

    def _beat(self, now_s: float) -> None:
        self._beat_s = now_s + self._beat_every_s
        self._notifier.alive()

    def _tell(self, pipeline: Pipeline, now_s: float) -> None:
        if self._notifier.listened_to:
            rate = self._frames / (now_s - self._told_s)
            p99_ms = pipeline.metrics.age.percentile_ns(99) / 1e6
            alert = ", budget missed" if pipeline.state.alert else ""
            self._notifier.status(
                f"mode {pipeline.state.mode}{alert}: {rate:.1f} frames/s, age p99 {p99_ms:.1f} ms"
            )
        self._told_s, self._frames = now_s, 0
