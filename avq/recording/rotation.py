"""Rotate and flush a log that runs for months: new files by size or age, the oldest deleted when space is needed."""

from __future__ import annotations

import errno
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from avq.errors import DataError
from avq.output_lock import OutputLock
from avq.recording.writer import Entry, LogWriter

_FULL = (errno.ENOSPC, errno.EDQUOT)
#: Bytes buffered on a full disk before they are dropped.
_MAX_BUFFER_BYTES = 16 * 1024 * 1024
_RETRY_S = 1.0
#: Begin of a file in its name, as in ``log-20261127T101530.250Z.mcap``.
_STAMP = r"-\d{8}T\d{6}\.\d{3}Z"
_log = logging.getLogger("avq.sinks.recorder")


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of log files; None is no limit.

    Attributes:
        file_bytes: a new file starts at this size.
        file_ns: a new file starts after this time.
        keep_bytes: the oldest files above this total are deleted.
    """

    file_bytes: int | None = None
    file_ns: int | None = None
    keep_bytes: int | None = None

    @property
    def rotates(self) -> bool:
        return self.file_bytes is not None or self.file_ns is not None


class RotatingLog:
    """Write to one file at a time; not thread-safe.

    Without rotation it is the file ``path`` when that name is free, else ``NAME-20261127T101530.250Z.mcap``: no log
    is ever replaced. With rotation all files are called so, and those of earlier runs count too. On a full disk the
    oldest of them is deleted, never the one being written. When none is left, messages are buffered, and dropped
    and counted in ``lost`` when the buffer is full.

    One process at a time writes the files of a name: it holds the lock of ``.NAME.mcap.lock``.

    Args:
        path: of the log.
        metadata: returns what is written at the begin of each file.
        limits: size and age of the files.

    Raises:
        DataError: the first file cannot be created, or another process writes the log.
    """

    def __init__(self, path: Path, metadata: Callable[[], Mapping[str, str]], limits: Limits) -> None:
        self.files = 0
        self.deleted = 0
        self.lost = 0
        self.error = ""  # why messages wait now
        self._path = path
        self._metadata = metadata
        self._limits = limits
        self._start_ns: int | None = None
        self._uncommitted = 0
        self._retry_at_s = 0.0
        self._own: dict[
            Path, int
        ] = {}  # files of this run, in order: names are times, and clocks are set back
        self._lock = OutputLock(path)
        self._log: LogWriter | None = None
        try:
            self._log = self._open()
        except DataError:
            self._lock.release()
            raise

    def add(self, entries: Sequence[Entry]) -> None:
        """Append messages; full chunks are written, the rest waits for ``flush``."""
        if not entries:
            return
        log = self._ready(entries[0].log_time_ns)
        if log is None:
            self.lost += len(entries)
            return
        for entry in entries:
            log.add(entry)
        self._uncommitted += len(entries)
        self._commit(log)

    def flush(self) -> None:
        """End the chunk and hand it to the kernel."""
        if self._log is not None and self._uncommitted:
            self._log.end_chunk()
            if self._commit(self._log):
                self._uncommitted = 0

    def next_file(self) -> None:
        """Finish the current file, so that the next message begins another one."""
        if self._log is not None:
            self._finish(self._log)
            self._log, self._retry_at_s = None, 0.0

    @property
    def current(self) -> LogWriter | None:
        """Writer of the current file; None while the disk is full."""
        return self._log

    def close(self) -> None:
        """Finish the current file; without its index where the disk is full."""
        if self._log is not None:
            self._finish(self._log)
            self._log = None
        self._lock.release()

    def _ready(self, t_ns: int) -> LogWriter | None:
        """Return the writer for a message of that time; a new one when the current file is full."""
        if self._log is None and time.monotonic() >= self._retry_at_s:
            self._retry_at_s = time.monotonic() + _RETRY_S
            with suppress(DataError):
                self._log = self._open()
        if self._log is None:
            return None
        self._start_ns = t_ns if self._start_ns is None else min(self._start_ns, t_ns)
        if self._full(self._log, t_ns):
            self._finish(self._log)
            self._log = None
            with suppress(DataError):
                self._log = self._open()
            self._start_ns = t_ns
        return self._log

    def _full(self, log: LogWriter, t_ns: int) -> bool:
        size, age_ns = self._limits.file_bytes, self._limits.file_ns
        start_ns = t_ns if self._start_ns is None else self._start_ns
        return (size is not None and log.size >= size) or (age_ns is not None and t_ns - start_ns >= age_ns)

    def _open(self) -> LogWriter:
        if self._limits.rotates:
            self._make_room()
        log = self._create()
        self.files += 1
        self._own[log.path] = self.files
        self._uncommitted, self._start_ns = 0, None
        return log

    def _create(self) -> LogWriter:
        """Start a new file; old ones are deleted when the disk has no space for its first bytes."""
        while True:
            try:
                return LogWriter(self._name(), self._metadata())
            except DataError as error:
                full = isinstance(error.__cause__, OSError) and error.__cause__.errno in _FULL
                if not (full and self._delete_oldest()):
                    raise

    def _name(self) -> Path:
        taken = self._path.is_file() or self._path.is_symlink()
        if not self._limits.rotates and not taken:
            return self._path  # also a FIFO or folder, which the writer refuses
        unix_ms = time.time_ns() // 1_000_000
        while True:
            at = datetime.fromtimestamp(unix_ms / 1000, timezone.utc)
            stamp = f"{at:%Y%m%dT%H%M%S}.{unix_ms % 1000:03d}Z"
            name = self._path.with_name(f"{self._path.stem}-{stamp}{self._path.suffix}")
            if not name.exists():
                return name
            unix_ms += 1

    def _commit(self, log: LogWriter) -> bool:
        """Write pending chunks, deleting the oldest files on a full disk; returns whether all are written.

        Every error of the disk may pass, so the bytes wait for the next attempt until the buffer is full.
        """
        while True:
            try:
                log.commit()
            except OSError as error:
                if not (error.errno in _FULL and self._delete_oldest()):
                    self._note_error(error)
                    break
            else:
                self._note_error(None)
                return True
        if log.pending > _MAX_BUFFER_BYTES:
            self._drop(log)
        return False

    def _note_error(self, error: OSError | None) -> None:
        """Log when writing begins to fail, and when it works again."""
        seen = "" if error is None else error.strerror or str(error)
        if bool(seen) != bool(self.error):
            _log.warning(
                "log %s: %s", self._path, seen or f"is written again; {self.lost} messages were lost"
            )
        self.error = seen

    def _drop(self, log: LogWriter) -> None:
        self.lost += self._uncommitted
        log.abandon()
        self._log = None
        self._retry_at_s = time.monotonic() + _RETRY_S

    def _finish(self, log: LogWriter) -> None:
        """Write the index; on a full disk the file ends with its last whole chunk."""
        log.end_file()
        if self._commit(log):
            try:
                log.close()
            except OSError as error:  # everything is written, but perhaps not on the disk
                self._note_error(error)
        elif self._log is log:  # not dropped already
            self.lost += self._uncommitted
            log.abandon()

    def _finished_files(self) -> list[Path]:
        """Return the finished files of this log, oldest first."""
        current = self._log.path if self._log is not None else None
        stamped = re.compile(re.escape(self._path.stem) + _STAMP + re.escape(self._path.suffix))
        matches = (path for path in self._path.parent.iterdir() if stamped.fullmatch(path.name))
        finished = (path for path in matches if path != current and path.is_file())
        by_age = sorted(finished, key=lambda path: (self._own.get(path, 0), path))
        return by_age if self._limits.rotates else []

    def _delete_oldest(self) -> bool:
        """Delete the oldest finished file; False when there is none, or the folder is read-only."""
        others = self._finished_files()
        try:
            for path in others[:1]:
                path.unlink(missing_ok=True)
                self._own.pop(path, None)
                self.deleted += 1
        except OSError:
            return False
        return bool(others)

    def _make_room(self) -> None:
        """Delete the oldest files until one more full file fits below ``keep_bytes``."""
        if self._limits.keep_bytes is None:
            return
        room = self._limits.keep_bytes - (self._limits.file_bytes or 0)
        while sum(_size(path) for path in self._finished_files()) > room and self._delete_oldest():
            pass


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


#: A message is written after this time: half of the 50 ms promised, since busy machines schedule threads late.
FLUSH_NS = 25_000_000
#: Interval of fdatasync.
SYNC_S = 1.0


class Flusher:
    """Write a log from any thread; flush chunks in time and sync the disk on two threads of its own.

    Args:
        log: written through this object only, and closed with it.
    """

    def __init__(self, log: RotatingLog) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._added = threading.Event()
        self._closing = threading.Event()
        self._oldest_ns: int | None = None
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for work, name in ((self._flush_loop, "recorder flush"), (self._sync_loop, "recorder sync"))
        ]
        for thread in self._threads:
            thread.start()

    def add(self, entries: Sequence[Entry]) -> None:
        """Append messages; they wait while the disk cannot take them."""
        now_ns = time.monotonic_ns()
        with self._lock:
            self._log.add(entries)
            if self._oldest_ns is None:
                self._oldest_ns = now_ns
            elif now_ns - self._oldest_ns >= FLUSH_NS:
                self._flush()
        self._added.set()

    def next_file(self) -> None:
        """Begin another file with the next message."""
        with self._lock:
            self._flush()
            self._log.next_file()

    def close(self) -> None:
        """Write pending messages and finish the file."""
        self._closing.set()
        self._added.set()
        self._threads[0].join()  # the other one may wait for the disk
        with self._lock:
            self._log.close()

    def _flush(self) -> None:
        self._log.flush()
        self._oldest_ns = None

    def _flush_loop(self) -> None:
        while self._added.wait() and not self._closing.wait(FLUSH_NS / 1e9):
            self._added.clear()
            if self._closing.is_set():
                return
            with self._lock:
                self._flush()

    def _sync_loop(self) -> None:
        """Sync periodically; the lock is not held while the disk works. What fails is tried again."""
        while not self._closing.wait(SYNC_S):
            try:
                with self._lock:
                    current = self._log.current
                    wait = current.sync_function() if current is not None else None
                if wait is not None:
                    wait()
            except OSError as error:
                _log.debug("log: not synced: %s", error)
