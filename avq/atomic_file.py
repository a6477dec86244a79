"""Write files atomically: under a temporary name in the same folder, then renamed to the final one."""

from __future__ import annotations

import errno
import glob
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from avq.errors import DataError


@contextmanager
def atomic_replace(path: Path) -> Iterator[Path]:
    """Yield a temporary path with the suffix of ``path``; it replaces ``path`` on disk when the block ends.

    The temporary file is deleted when the block fails.

    Args:
        path: the file to create or replace.

    Raises:
        OSError: the file cannot be written or renamed, or ``path`` is a FIFO, socket or device.
    """
    refuse_special(path)
    temporary = path.with_name(f".{path.stem}.new-{os.getpid()}{path.suffix}")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def refuse_special(path: Path) -> None:
    """Raise OSError when ``path`` is a FIFO, socket or device: a new file in its place would destroy it."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EEXIST, "the path is a FIFO, socket or device, not a file", str(path))


def stale_temporaries(path: Path) -> Iterator[Path]:
    """Yield the temporary files of ``path`` that killed writers left behind."""
    return path.parent.glob(f".{glob.escape(path.stem)}.new-*{glob.escape(path.suffix)}")


@contextmanager
def atomic_write_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path as ``atomic_replace`` does.

    Raises:
        DataError: ``path`` cannot be written.
    """
    try:
        with atomic_replace(path) as temporary:
            yield temporary
    except OSError as error:
        raise DataError(
            f"{path} cannot be written",
            seen=error.strerror or str(error),
            fix="check the path, its permissions and the free space",
        ) from None


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write ``content`` (text as UTF-8) to ``path``.

    Raises:
        DataError: ``path`` cannot be written.
    """
    with atomic_write_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
