"""The end of a service: neither a reader that does not read nor a thread that does not end may hold it up."""

from __future__ import annotations

import atexit
import os
import select
import sys
from collections.abc import Collection
from contextlib import suppress
from threading import Thread

_PATIENCE_S = 2.0
#: What a pipe takes without waiting when it says that it has room.
_ROOM_BYTES = 4096


def told(text: str) -> bool:
    """Write a line to standard output; False when the reader has taken nothing for two seconds.

    Raises OSError, as print does.
    """
    sys.stdout.flush()
    output = sys.stdout.fileno()
    ready = select.poll()
    ready.register(output, select.POLLOUT)
    left = memoryview(f"{text}\n".encode())
    while left:
        if not ready.poll(_PATIENCE_S * 1000):
            return False
        left = left[os.write(output, left[:_ROOM_BYTES]) :]
    return True


def drop_output() -> None:
    """Send what still waits for standard output nowhere: Python would try it again when it ends, and fail."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def end_without(threads: Collection[Thread], code: int) -> None:
    """When the process ends, end it at once with ``code`` if one of these threads is still there.

    It is inside a library that does not come back. If it did while Python goes down, Python would unwind it, and C++
    and Rust answer that by aborting the process.
    """

    def leave() -> None:
        if any(thread.is_alive() for thread in threads):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    if threads:
        atexit.register(leave)
