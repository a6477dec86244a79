"""A file that grows by whole pieces: what cannot be written completely is taken back and kept for another try."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from avq.atomic_file import refuse_special


class WholeWrites:
    """A binary stream for ``mcap.writer.Writer``: ``write`` collects, ``commit`` hands it all to the kernel.

    Args:
        path: created, or emptied.

    Raises:
        OSError: it cannot be created, or something is there that is no file.
    """

    def __init__(self, path: Path) -> None:
        refuse_special(path)
        path.unlink(missing_ok=True)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._pending = bytearray()
        self._committed = 0
        self.closed = False

    def write(self, data: bytes | bytearray) -> int:
        self._pending += data
        return len(data)

    def tell(self) -> int:
        return self._committed + len(self._pending)

    def flush(self) -> None:
        """Nothing: ``commit`` decides when bytes leave the process."""

    @property
    def pending(self) -> int:
        """Bytes not yet committed."""
        return len(self._pending)

    def commit(self) -> None:
        """Raises OSError (a full disk); then the file ends where it ended before and nothing is lost."""
        view = memoryview(self._pending)
        done = 0
        try:
            while done < len(view):
                done += os.write(self._fd, view[done:])
        except OSError:
            os.ftruncate(self._fd, self._committed)
            os.lseek(self._fd, self._committed, os.SEEK_SET)
            raise
        finally:
            view.release()
        self._committed += done
        self._pending.clear()

    def synced_later(self) -> Callable[[], None]:
        """A function, to be called once, that waits until the disk has it; safe beside everything else."""
        descriptor = os.dup(self._fd)

        def wait() -> None:
            try:
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)

        return wait

    def close(self) -> None:
        """What is still pending is dropped."""
        if not self.closed:
            self.closed = True
            os.close(self._fd)
