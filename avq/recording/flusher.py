"""Chunks out of the process in time, whether or not more messages come."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from avq.recording.rotation import RotatingLog
from avq.recording.writer import Entry

#: After so long a message leaves the process: half of the 50 ms promised, as busy machines call threads late.
FLUSH_NS = 25_000_000
#: How often the disk is waited for.
SYNC_S = 1.0


class Flusher:
    """Guards a log with a lock; ends chunks that would wait too long, with the next message or on its own thread.

    Args:
        log: written through this object only, and closed with it.
    """

    def __init__(self, log: RotatingLog) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._fresh = threading.Event()
        self._over = threading.Event()
        self._waiting_since_ns: int | None = None
        self._error: OSError | None = None
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for work, name in ((self._flush_in_time, "recorder flush"), (self._sync_in_time, "recorder sync"))
        ]
        for thread in self._threads:
            thread.start()

    def add(self, entries: Sequence[Entry]) -> None:
        """Log messages. Raises the OSError that stopped a thread: a disk that broke, not one that is full."""
        if self._error is not None:
            raise self._error
        now_ns = time.monotonic_ns()
        with self._lock:
            self._log.add(entries)
            if self._waiting_since_ns is None:
                self._waiting_since_ns = now_ns
            elif now_ns - self._waiting_since_ns >= FLUSH_NS:
                self._flush()
        self._fresh.set()

    def close(self) -> None:
        """Write what waits and finish the file."""
        self._over.set()
        self._fresh.set()
        self._threads[0].join()  # the other one may wait for the disk
        with self._lock:
            self._log.close()

    def _flush(self) -> None:
        self._log.flush()
        self._waiting_since_ns = None

    def _flush_in_time(self) -> None:
        while self._fresh.wait() and not self._over.wait(FLUSH_NS / 1e9):
            self._fresh.clear()
            if self._over.is_set():
                return
            try:
                with self._lock:
                    self._flush()
            except OSError as error:
                self._error = error
                return

    def _sync_in_time(self) -> None:
        """The disk may take its time: no lock is held while it does."""
        while not self._over.wait(SYNC_S):
            with self._lock:
                running = self._log.running
                wait = running.synced_later() if running is not None else None
            try:
                if wait is not None:
                    wait()
            except OSError as error:
                self._error = error
                return
