"""This process: output suppression for C code, memory readings and thread priority."""

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
    """Discard everything the process writes to ``descriptor``, including writes of C libraries.

    Args:
        descriptor: STANDARD_OUTPUT or STANDARD_ERROR.
    """
    _flush()
    saved, null = os.dup(descriptor), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    try:
        yield
    finally:
        _flush()  # buffers of the C library would be written after the redirection ends
        os.dup2(saved, descriptor)
        os.close(saved)
        os.close(null)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a closed pipe
            stream.flush()
    ctypes.CDLL(None).fflush(None)


def resident_bytes(pid: int | None = None) -> int | None:
    """Read the resident memory of a process.

    Args:
        pid: process id; None for this process.

    Returns:
        Bytes, or None when the process has ended.
    """
    try:
        pages = int(Path(f"/proc/{pid or 'self'}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_rss_mb() -> float:
    """Read the largest resident set of this process so far, in MB (10**6 bytes).

    VmHWM where available: ru_maxrss of a fresh program starts with the size of its parent.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except (OSError, ValueError):
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


#: Not more: a thread that holds the interpreter lock must get a processor to release it.
_NICE_INCREMENT = 5
_NICE_LIMIT = 19


def lower_thread_priority() -> None:
    """Lower the priority of the calling thread; keep it where the system refuses the change."""
    thread = threading.get_native_id()
    with suppress(OSError):
        now = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, min(now + _NICE_INCREMENT, _NICE_LIMIT))
