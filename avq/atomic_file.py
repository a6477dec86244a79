"""Write files and folders atomically: under a temporary name in the same folder, then renamed to the final one."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from avq.errors import DataError

#: Records hold pictures of people: their owner and their group read them.
PRIVATE_MODE = 0o640


@contextmanager
def atomic_replace(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """Yield a temporary path with the suffix of ``path``; it replaces ``path`` on disk when the block ends.

    The temporary file is deleted when the block fails. Those of killed writers of ``path`` are deleted first.

    Args:
        path: the file to create or replace.
        mode: permissions, less the umask.

    Raises:
        OSError: the file cannot be written or renamed, or ``path`` is a FIFO, socket or device.
    """
    refuse_special(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    for stale in stale_temporaries(path):
        with suppress(OSError):
            stale.unlink()
    token = secrets.token_hex(4)
    temporary = path.with_name(f".{path.stem}.new-{token}{path.suffix}")
    unlocked = path.with_name(f".{token}{path.suffix}")  # no other writer takes it for stale
    held = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        lock_descriptor(held)
        os.utime(held, (0, 0))
        unlocked.rename(temporary)
        yield temporary
        if temporary.stat().st_mtime == 0:
            raise FileNotFoundError(errno.ENOENT, "No such file: nothing was written", str(path))
        sync(temporary)
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()
        os.close(held)


def refuse_special(path: Path) -> None:
    """Raise OSError when ``path`` is a FIFO, socket or device: a new file in its place would destroy it.

    So does a link to one, and a link to an open file of a process, such as /dev/stdout.
    """
    try:
        if path.is_symlink() and str(path.readlink()).startswith("/proc/"):
            raise OSError(errno.EEXIST, "the path is a link to an open file, not a file", str(path))
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EEXIST, "the path is a FIFO, socket or device, not a file", str(path))


def lock_descriptor(descriptor: int) -> bool:
    """Lock an open file or folder until it is closed; False when another open one holds the lock.

    The lock ends with its holder, however that ends. A file system without locks counts as free.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def is_locked(path: Path) -> bool:
    """Whether a living writer holds the lock of a file or folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not lock_descriptor(descriptor)
    finally:
        os.close(descriptor)


#: Staging folders of this process, with the descriptor that holds each one's lock.
_staged: dict[Path, int] = {}


def new_staging_folder(final: Path) -> Path:
    """Create an empty folder next to ``final``, where its content is prepared; those of killed writers are deleted.

    It counts as in use until ``end_staging`` or the end of this process. Raises OSError.
    """
    for found in final.parent.glob(f".{glob.escape(final.name)}.staging-*"):
        if found.is_dir() and not is_locked(found):
            shutil.rmtree(found, ignore_errors=True)
    token = secrets.token_hex(4)
    unlocked = final.with_name(f".{token}")  # no other writer takes it for stale
    unlocked.mkdir()
    descriptor = os.open(unlocked, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    lock_descriptor(descriptor)
    folder = final.with_name(f".{final.name}.staging-{token}")
    unlocked.rename(folder)
    _staged[folder] = descriptor
    return folder


def end_staging(folder: Path) -> None:
    """End the use of a staging folder that was moved or deleted, or may be deleted by the next writer."""
    descriptor = _staged.pop(folder, -1)
    if descriptor >= 0:
        os.close(descriptor)


def stale_temporaries(path: Path) -> Iterator[Path]:
    """Yield the temporary files of ``path`` that killed writers left behind."""
    for found in path.parent.glob(f".{glob.escape(path.stem)}.new-*{glob.escape(path.suffix)}"):
        if not is_locked(found):
            yield found


@contextmanager
def atomic_write_path(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """Yield a temporary path as ``atomic_replace`` does.

    Raises:
        DataError: ``path`` cannot be written.
    """
    try:
        with atomic_replace(path, mode) as temporary:
            yield temporary
    except OSError as error:
        raise DataError(
            f"{path} cannot be written",
            seen=error.strerror or str(error),
            fix="check the path, its permissions and the free space",
        ) from None


def atomic_write(path: Path, content: bytes | str, mode: int = 0o666) -> None:
    """Write ``content`` (text as UTF-8) to ``path``.

    Raises:
        DataError: ``path`` cannot be written.
    """
    with atomic_write_path(path, mode) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
