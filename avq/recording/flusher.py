"""Chunks out of the process in time, whether or not more messages come."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from avq.recording.rotation import RotatingLog
from avq.recording.writer import Entry

#: A message leaves the process after so long at the latest, and reaches the disk after so long.
FLUSH_S = 0.05
SYNC_S = 1.0


class Flusher:
    """Guards a log with a lock; its thread ends chunks that would wait too long.

    Args:
        log: written through this object only, and closed with it.
    """

    def __init__(self, log: RotatingLog) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._fresh = threading.Event()
        self._over = threading.Event()
        self._error: OSError | None = None
        self._synced_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="recorder flush", daemon=True)
        self._thread.start()

    def add(self, entries: Sequence[Entry]) -> None:
        """Log messages. Raises the OSError that stopped the thread: a disk that broke, not one that is full."""
        if self._error is not None:
            raise self._error
        with self._lock:
            self._log.add(entries)
        self._fresh.set()

    def close(self) -> None:
        """Write what waits and finish the file."""
        self._over.set()
        self._fresh.set()
        self._thread.join()
        with self._lock:
            self._log.close()

    def _run(self) -> None:
        while self._fresh.wait() and not self._over.wait(FLUSH_S * 0.8):  # the rest is for the scheduler
            self._fresh.clear()
            if self._over.is_set():
                return
            try:
                with self._lock:
                    self._log.flush()
                self._sync()
            except OSError as error:
                self._error = error
                return

    def _sync(self) -> None:
        """The disk may take its time: the lock is not held while it does."""
        if time.monotonic() - self._synced_s < SYNC_S:
            return
        self._synced_s = time.monotonic()
        with self._lock:
            running = self._log.running
            wait = running.synced_later() if running is not None else None
        if wait is not None:
            wait()
