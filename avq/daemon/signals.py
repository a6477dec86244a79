"""Signals of a run: end cleanly, or read the configuration again."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def obeyed(stop: Callable[[], None], reload: Callable[[], None] | None) -> Iterator[None]:
    """SIGINT and SIGTERM call ``stop`` once; a second one acts as if we were not here. SIGHUP calls ``reload``.

    Both functions must be safe in a signal handler. Nothing happens outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ends = (signal.SIGINT, signal.SIGTERM)
    numbers = (*ends, *([signal.SIGHUP] if reload is not None else []))
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number in ends:
            signal.signal(number, before[number])

    def ask(number: int, _stack: object) -> None:
        if number == signal.SIGHUP:
            if reload is not None:
                reload()
            return
        restore()
        stop()

    for number in numbers:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
