"""Ends the process when a stop signal came and the loop does not return, because an engine hangs in foreign code."""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from avq.errors import MachineError

#: The frame that is being processed may take so long after a stop signal.
LOOP_S = 8.0
_log = logging.getLogger("avq.daemon")


class StopDeadline:
    """Watches SIGINT and SIGTERM on a thread: Python's handlers do not run while the main thread is in foreign code.

    Args:
        exit_now: ends the process with an exit code.
        seconds: between the signal and the end of the loop.
    """

    def __init__(self, exit_now: Callable[[int], None] = os._exit, seconds: float = LOOP_S) -> None:
        self.drain: Callable[[], object] = lambda: None
        self._exit_now = exit_now
        self._seconds = seconds
        self._ended = threading.Event()

    def loop_ended(self) -> None:
        """The loop has returned: nothing hangs."""
        self._ended.set()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Watch until the block is left; does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        before = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        thread = threading.Thread(target=self._run, args=(read_fd,), name="stop deadline", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            signal.set_wakeup_fd(before)
            os.close(write_fd)  # ends the thread
            thread.join()
            os.close(read_fd)

    def _run(self, read_fd: int) -> None:
        while True:
            select.select([read_fd], [], [])
            data = os.read(read_fd, 64)
            if not data:
                return
            if {signal.SIGINT, signal.SIGTERM} & set(data) and not self._ended.wait(self._seconds):
                self._end()

    def _end(self) -> None:
        _log.error(
            "the engine does not return within %g s of the stop signal; the run is ended", self._seconds
        )
        self.drain()
        self._exit_now(MachineError.exit_code)
