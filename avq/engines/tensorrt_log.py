"""What TensorRT says, kept: it prints to standard error otherwise, and its errors are the only reasons it gives."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def no_collection() -> Iterator[None]:
    """Around calls of TensorRT that may log; also a decorator.

    It logs while it holds a lock, and the end of a builder takes the same one. A collection inside the log that
    finds a builder (the traceback of an error kept it in a cycle) would wait for that lock for ever.
    """
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def make_log(trt: Any) -> Any:
    """A logger with lists ``errors`` and ``warnings``; ``trt`` is the module whose ILogger it is."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(message)

    return Log()


def last_words(log: Any) -> str:
    """The last error on one line; '' when there was none."""
    lines: list[str] = getattr(log, "errors", [])
    return " ".join(lines[-1].split())[:400] if lines else ""
