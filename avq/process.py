"""Silence for C code that prints past every Python setting."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

STANDARD_OUTPUT, STANDARD_ERROR = 1, 2


@contextlib.contextmanager
def suppress_output(descriptor: int) -> Iterator[None]:
    """Nothing that is printed meanwhile reaches ``descriptor``, in the whole process."""
    _flush()
    saved, nowhere = os.dup(descriptor), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    try:
        yield
    finally:
        _flush()  # what C has buffered would come out later
        os.dup2(saved, descriptor)
        os.close(saved)
        os.close(nowhere)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a closed pipe
            stream.flush()
    ctypes.CDLL(None).fflush(None)


# Peak memory of this process.


def peak_rss_mb() -> float:
    """Largest resident set so far, in MB (10**6 bytes).

    VmHWM where there is one: ru_maxrss of a fresh program begins with its parent's size.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except (OSError, ValueError):
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


# How threads that can wait let the frame path go first.

#: Not more: a thread that holds the interpreter's lock must get a processor to give it back.
_NICER = 5
_NICEST = 19


def lower_thread_priority() -> None:
    """Give the calling thread a lower priority than it has; where the system refuses, it keeps its own."""
    thread = threading.get_native_id()
    with suppress(OSError):
        now = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, min(now + _NICER, _NICEST))
