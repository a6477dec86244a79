"""One Ray cluster for all tests of a file, and accidents that happen to its workers."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from avq.parallel import WorkerPool


@pytest.fixture(scope="module")
def ray_workers() -> Iterator[WorkerPool]:
    """A pool of two Ray workers; skips where ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip('ray is not installed: pip install "avq[ray]"')
    os.environ.setdefault(
        "RAY_memory_monitor_refresh_ms", "0"
    )  # others may fill the machine; no worker dies of it
    before = ray_processes()
    pool = WorkerPool("ray", 2, "local")
    assert pool.worker_count == 2
    yield pool
    pool.close()
    end_s = time.monotonic() + 60
    while (left := ray_processes() - before) and time.monotonic() < end_s:
        time.sleep(0.1)
    assert not left, "a closed pool leaves no process behind"


def ray_processes() -> set[int]:
    """Processes of Ray below this one."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended meanwhile
            if any("ray" in word for word in child.cmdline()[:1]):
                found.add(child.pid)
    return found


def killed_once(folder: Path, number: int) -> int:
    """Return the square; the first worker that gets 3 is killed, as the kernel would kill it."""
    mark = folder / "killed"
    if number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def always_killed(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


class KillsAWorker:
    """While it is entered, one Ray worker that is at work is killed. ``killed`` is its process, afterwards."""

    def __init__(self) -> None:
        self.killed: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._stop.is_set() and self.killed is None:
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):  # it has ended meanwhile
                    if process.cmdline()[:1] == ["ray::_call"]:
                        process.kill()
                        self.killed = process.pid
                        return
            time.sleep(0.01)

    def __enter__(self) -> KillsAWorker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
