"""Messages that wait on disk until they are delivered: one file each, in order, bounded, whole after any crash."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from avq.atomic_file import PRIVATE_MODE, atomic_write, is_locked, lock_descriptor, sync
from avq.errors import DataError

_SUFFIX = ".json"
_LOCK = "lock"
_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Waiting:
    """One message. ``number`` is its place in the order."""

    number: int
    body: bytes


class Spool:
    """A queue that survives its process.

    A message is written aside, synced and renamed, so it is there whole or not at all. What the disk refuses waits
    in memory, and is saved when the disk takes messages again. Where the bound is reached the oldest message goes,
    except the very oldest, which may be on its way out.

    Args:
        folder: made when absent; one process at a time.
        limit: messages kept at most, 2 or more.

    Raises:
        DataError: the folder cannot be written, or another process has it.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.added = 0
        self.dropped = 0
        self._folder = folder
        self._mutex = threading.Lock()  # one thread adds, another one delivers
        self._limit = limit
        try:
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DataError(
                f"the spool {folder} cannot be written",
                seen=str(error),
                fix="choose another with spool = DIR",
            ) from None
        if not lock_descriptor(self._lock):
            os.close(self._lock)
            raise _taken(folder)
        for path in folder.glob("*.new"):
            with suppress(OSError):
                path.unlink(missing_ok=True)  # half-written by a process that was killed
        self._on_its_way = 0
        self._unsaved: dict[int, bytes] = {}
        left = (path for path in folder.glob(f"*{_SUFFIX}") if path.stem.isdigit() and path.is_file())
        self._numbers = sorted(int(path.stem) for path in left)
        self._next = self._numbers[-1] + 1 if self._numbers else 1

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def unsaved(self) -> int:
        """Messages that only this process has, because the disk refused them."""
        return len(self._unsaved)

    def add(self, body: bytes) -> None:
        """Keep a message: on disk when this returns, or in memory where the disk is full or broken."""
        number = self._next
        self._next += 1
        saved = self._save_what_waits() and self._saved(number, body)
        with self._mutex:
            if not saved:
                self._unsaved[number] = body
            self._numbers.append(number)
            self.added += 1
            while len(self._numbers) > self._limit:
                self._forget(self._numbers.pop(0 if self._numbers[1] == self._on_its_way else 1))
                self.dropped += 1

    def _save_what_waits(self) -> bool:
        """Save what the disk refused before, oldest first; False when it still does."""
        for number, body in list(self._unsaved.items()):
            if not self._saved(number, body):
                return False
            with self._mutex:
                if self._unsaved.pop(number, None) is None:  # delivered meanwhile
                    self._forget(number)
        return True

    def _saved(self, number: int, body: bytes) -> bool:
        try:
            self._save(number, body)
        except OSError:
            return False
        return True

    def _save(self, number: int, body: bytes) -> None:
        path = self._path(number)
        aside = path.with_suffix(".new")
        try:
            with os.fdopen(os.open(aside, _NEW, PRIVATE_MODE), "wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            aside.rename(path)
            sync(self._folder)
        except OSError:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            raise

    def oldest(self, passing: Collection[int] = ()) -> Waiting | None:
        """The next message to deliver, which is then on its way.

        Args:
            passing: messages to pass over. One that cannot be read any more is dropped and counted.
        """
        with self._mutex:
            while True:
                first = self._numbers[: len(passing) + 1]
                number = next((number for number in first if number not in passing), None)
                if number is None:
                    return None
                try:
                    body = self._unsaved.get(number)
                    found = Waiting(number, self._path(number).read_bytes() if body is None else body)
                except OSError:
                    self.dropped += 1
                    self._numbers.remove(number)
                else:
                    self._on_its_way = number
                    return found

    def numbers(self) -> frozenset[int]:
        """Return the messages that wait."""
        with self._mutex:
            return frozenset(self._numbers)

    @property
    def identity(self) -> str:
        """A random text that stays with the folder; its path where the disk takes no file."""
        path = self._folder / "identity"
        with suppress(OSError, DataError, UnicodeDecodeError):
            if not path.exists():
                atomic_write(path, secrets.token_hex(8), PRIVATE_MODE)
            return path.read_text(encoding="utf-8")
        return str(self._folder.resolve())

    def remove(self, number: int) -> None:
        """It was delivered."""
        with self._mutex:
            if number in self._numbers:
                self._numbers.remove(number)
            self._forget(number)

    def _forget(self, number: int) -> None:
        self._unsaved.pop(number, None)
        with suppress(OSError):
            self._path(number).unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self._lock)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:016d}{_SUFFIX}"


def require_free(folder: Path) -> None:
    """Raise DataError when another process uses the spool."""
    if is_locked(folder / _LOCK):
        raise _taken(folder)


def _taken(folder: Path) -> DataError:
    return DataError(
        f"another process uses the spool {folder}",
        seen="its lock is held",
        fix="give every daemon a spool of its own: spool = DIR",
    )
