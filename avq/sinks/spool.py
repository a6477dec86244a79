"""Messages that wait on disk until they are delivered: one file each, in order, bounded, whole after any crash."""

from __future__ import annotations

import fcntl
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from avq.errors import DataError

_SUFFIX = ".json"


@dataclass(frozen=True, slots=True)
class Waiting:
    """One message. ``number`` is its place in the order."""

    number: int
    body: bytes


class Spool:
    """A queue that survives its process.

    A message is written aside, synced and renamed, so it is there whole or not at all. Where the bound is reached the
    oldest message goes, except the very oldest, which may be on its way out.

    Args:
        folder: made when absent; one process at a time.
        limit: messages kept at most, 2 or more.

    Raises:
        DataError: the folder cannot be written, or another process has it.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.dropped = 0
        self._folder = folder
        self._mutex = threading.Lock()  # one thread adds, another one delivers
        self._limit = limit
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DataError(
                f"the spool {folder} cannot be written",
                seen=str(error),
                fix="choose another with spool = DIR",
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise DataError(
                f"another process uses the spool {folder}",
                seen="its lock is held",
                fix="give every daemon a spool of its own: spool = DIR",
            ) from None
        for path in folder.glob("*.new"):
            path.unlink(missing_ok=True)  # half-written by a process that was killed
        self._numbers = sorted(int(path.stem) for path in folder.glob(f"*{_SUFFIX}") if path.stem.isdigit())
        self._next = self._numbers[-1] + 1 if self._numbers else 1

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, body: bytes) -> None:
        """Keep a message; it is on disk when this returns. Raises OSError."""
        path = self._path(self._next)
        aside = path.with_suffix(".new")
        with aside.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        aside.rename(path)
        _sync_folder(self._folder)
        with self._mutex:
            self._numbers.append(self._next)
            self._next += 1
            while len(self._numbers) > self._limit:
                self._path(self._numbers.pop(1)).unlink(missing_ok=True)
                self.dropped += 1

    def oldest(self) -> Waiting | None:
        """The next message to deliver. One that cannot be read any more is passed over and counted as dropped."""
        with self._mutex:
            while self._numbers:
                try:
                    return Waiting(self._numbers[0], self._path(self._numbers[0]).read_bytes())
                except OSError:
                    self.dropped += 1
                    del self._numbers[0]
        return None

    def remove(self, number: int) -> None:
        """It was delivered."""
        with self._mutex:
            self._numbers.remove(number)
        self._path(number).unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self._lock)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:016d}{_SUFFIX}"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
