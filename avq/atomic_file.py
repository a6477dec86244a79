"""Files that appear whole or not at all: written beside their place, then renamed."""

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
def beside(path: Path) -> Iterator[Path]:
    """A path beside ``path``, of its suffix, to write to; on disk it takes its place when the block ends.

    It is gone when the block fails. Raises OSError when the system refuses.
    """
    refuse_special(path)
    aside = path.with_name(f".{path.stem}.new-{os.getpid()}{path.suffix}")
    try:
        yield aside
        sync(aside)
        aside.replace(path)
    finally:
        with suppress(OSError):
            aside.unlink()


def refuse_special(path: Path) -> None:
    """Raises OSError when a FIFO, socket or device is at ``path``: a new file in its place would destroy it."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EEXIST, "a FIFO, socket or device is there, not a file", str(path))


def left_beside(path: Path) -> Iterator[Path]:
    """What writers of ``path`` that were killed left."""
    return path.parent.glob(f".{glob.escape(path.stem)}.new-*{glob.escape(path.suffix)}")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """``beside``, for files of which there is nothing else to say: DataError when the system refuses."""
    try:
        with beside(path) as aside:
            yield aside
    except OSError as error:
        raise DataError(
            f"{path} cannot be written",
            seen=error.strerror or str(error),
            fix="check the path, its permissions and the free space",
        ) from None


def write_whole(path: Path, content: bytes | str) -> None:
    """``content`` (text as UTF-8) at ``path``. Raises DataError when it cannot be written."""
    with written_whole(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
