"""Silence for C code that prints past every Python setting."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

STANDARD_OUTPUT, STANDARD_ERROR = 1, 2


@contextlib.contextmanager
def muted(descriptor: int) -> Iterator[None]:
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
