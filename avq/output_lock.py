"""One writer per output: a lock that ends with the process that holds it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Protocol, runtime_checkable

from avq.atomic_file import is_locked, lock_descriptor
from avq.errors import DataError


@runtime_checkable
class LockingSinkType(Protocol):
    """A built-in sink type whose outputs have one writer each."""

    def require_free(self, uri: str) -> None:
        """Raise DataError when another writer has the output of ``uri``; create nothing."""
        ...


class OutputLock:
    """The lock of an output that consists of several files; ``release`` ends it, and so does the end of the process.

    Args:
        path: of the output; links are followed, so all names of a file share a lock.

    Raises:
        DataError: another writer holds it, or the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = lock_path(path)
        self._descriptor = -1
        while self._descriptor < 0:
            try:
                self._descriptor = self._acquired()
            except OSError as error:
                raise DataError(
                    f"{path} cannot be written", seen=str(error), fix="choose another path"
                ) from error
            if self._descriptor == _HELD:
                raise writer_exists(path)

    def _acquired(self) -> int:
        """Return the locked descriptor; -1 when the file was removed meanwhile, ``_HELD`` when it is locked."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if not lock_descriptor(descriptor):
            os.close(descriptor)
            return _HELD
        with suppress(OSError):
            if os.fstat(descriptor).st_ino == self._path.stat().st_ino:
                return descriptor
        os.close(descriptor)
        return -1

    def release(self) -> None:
        """Remove the lock file and end the lock; safe to call twice."""
        if self._descriptor >= 0:
            with suppress(OSError):
                self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = -1


_HELD = -2


def lock_path(path: Path) -> Path:
    """Return the lock file of an output, next to it."""
    target = path.resolve()
    return target.with_name(f".{target.name}.lock")


def require_unlocked(path: Path, lock: Path) -> None:
    """Raise DataError when another writer holds the lock ``lock`` of ``path``."""
    if is_locked(lock):
        raise writer_exists(path)


def writer_exists(path: Path) -> DataError:
    """Return the error of a second writer."""
    return DataError(
        f"another writer has the output {path}",
        seen="its lock is held by a running process, or by another sink of this configuration",
        fix="give every sink of every daemon a file of its own",
    )
