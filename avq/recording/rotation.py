"""A log that goes on for months: one file after the other, the oldest deleted when the disk has to have room."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from avq.errors import DataError
from avq.recording.writer import Entry, LogWriter

_FULL = (errno.ENOSPC, errno.EDQUOT)
#: Bytes that wait for room on a full disk before they are given up.
_PATIENCE_BYTES = 16 * 1024 * 1024
_TRY_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """When a file is full, and how much is kept. None is no limit.

    Attributes:
        file_bytes, file_ns: another file is begun after so much, or so long.
        keep_bytes: of all files together.
    """

    file_bytes: int | None = None
    file_ns: int | None = None
    keep_bytes: int | None = None

    @property
    def rotates(self) -> bool:
        return self.file_bytes is not None or self.file_ns is not None


class RotatingLog:
    """Writes to one file at a time; not thread-safe.

    Without rotation it is the file ``path``. With it, files are called ``NAME-20261127T101530.250Z.mcap``, and those
    of earlier runs count too. On a full disk the oldest of them goes, never the one that is being written; when there
    is none left, messages wait for room, and are lost and counted when there are too many.

    Args:
        path: of the log.
        metadata: of each file.
        limits: of files.

    Raises:
        DataError: the first file cannot be created.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str], limits: Limits) -> None:
        self.files = 0
        self.deleted = 0
        self.lost = 0
        self._path = path
        self._metadata = metadata
        self._limits = limits
        self._began_ns: int | None = None
        self._uncommitted = 0
        self._retry_at_s = 0.0
        self._log: LogWriter | None = None
        self._log = self._open()

    def add(self, entries: Sequence[Entry]) -> None:
        """Append messages; they leave the process with full chunks, or with ``flush``."""
        if not entries:
            return
        log = self._ready(entries[0].log_time_ns)
        if log is None:
            self.lost += len(entries)
            return
        for one in entries:
            log.add(one)
        self._uncommitted += len(entries)
        self._commit(log)

    def flush(self) -> None:
        """End the chunk and hand it to the kernel."""
        if self._log is not None and self._uncommitted:
            self._log.end_chunk()
            if self._commit(self._log):
                self._uncommitted = 0

    @property
    def running(self) -> LogWriter | None:
        """The file being written; None while the disk is full."""
        return self._log

    def close(self) -> None:
        """Finish the running file; without its index where the disk is full."""
        if self._log is not None:
            self._finish(self._log)
            self._log = None

    def _ready(self, t_ns: int) -> LogWriter | None:
        """The file for a message of that time, a new one where the running one is full."""
        if self._log is None and time.monotonic() >= self._retry_at_s:
            self._retry_at_s = time.monotonic() + _TRY_AGAIN_S
            with suppress(DataError):
                self._log = self._open()
        if self._log is None:
            return None
        self._began_ns = t_ns if self._began_ns is None else min(self._began_ns, t_ns)
        if self._full(self._log, t_ns):
            self._finish(self._log)
            self._log = None
            with suppress(DataError):
                self._log = self._open()
            self._began_ns = t_ns
        return self._log

    def _full(self, log: LogWriter, t_ns: int) -> bool:
        size, age_ns = self._limits.file_bytes, self._limits.file_ns
        began_ns = t_ns if self._began_ns is None else self._began_ns
        return (size is not None and log.size >= size) or (age_ns is not None and t_ns - began_ns >= age_ns)

    def _open(self) -> LogWriter:
        if self._limits.rotates:
            self._make_room()
        log = self._begin()
        self.files += 1
        self._uncommitted, self._began_ns = 0, None
        return log

    def _begin(self) -> LogWriter:
        """A new file, for whose first bytes an old one may have to go."""
        while True:
            try:
                return LogWriter(self._name(), self._metadata)
            except DataError as error:
                full = isinstance(error.__cause__, OSError) and error.__cause__.errno in _FULL
                if not (full and self._delete_oldest()):
                    raise

    def _name(self) -> Path:
        if not self._limits.rotates:
            return self._path
        unix_ms = time.time_ns() // 1_000_000
        while True:
            at = datetime.fromtimestamp(unix_ms / 1000, timezone.utc)
            stamp = f"{at:%Y%m%dT%H%M%S}.{unix_ms % 1000:03d}Z"
            name = self._path.with_name(f"{self._path.stem}-{stamp}{self._path.suffix}")
            if not name.exists():
                return name
            unix_ms += 1

    def _commit(self, log: LogWriter) -> bool:
        """Whether the kernel has it all; on a full disk after the oldest files went."""
        while True:
            try:
                log.commit()
                return True
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                if not self._delete_oldest():
                    break
        if log.pending > _PATIENCE_BYTES:
            self._give_up(log)
        return False

    def _give_up(self, log: LogWriter) -> None:
        self.lost += self._uncommitted
        log.abandon()
        self._log = None
        # without rotation a new file would replace this one
        self._retry_at_s = time.monotonic() + _TRY_AGAIN_S if self._limits.rotates else float("inf")

    def _finish(self, log: LogWriter) -> None:
        """Write the index; where even that finds no room, the file ends with its last whole chunk."""
        log.end_file()
        if self._commit(log):
            log.close()
        elif self._log is log:  # not given up already
            self.lost += self._uncommitted
            log.abandon()

    def _others(self) -> list[Path]:
        """Finished files of this log, oldest first."""
        running = self._log.path if self._log is not None else None
        found = self._path.parent.glob(f"{self._path.stem}-*T*Z{self._path.suffix}")
        mine = (path for path in found if path != running and path.is_file())
        return sorted(mine) if self._limits.rotates else []

    def _delete_oldest(self) -> bool:
        """False when there is none, or the folder has become read-only."""
        others = self._others()
        try:
            for path in others[:1]:
                path.unlink(missing_ok=True)
                self.deleted += 1
        except OSError:
            return False
        return bool(others)

    def _make_room(self) -> None:
        """Delete the oldest until what is kept and one more full file fit."""
        if self._limits.keep_bytes is None:
            return
        room = self._limits.keep_bytes - (self._limits.file_bytes or 0)
        while sum(_size(path) for path in self._others()) > room and self._delete_oldest():
            pass


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


# Chunks out of the process in time, whether or not more messages come.

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
