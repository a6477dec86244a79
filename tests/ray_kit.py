"""One Ray cluster for all tests of a process, and accidents that happen to its workers."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from avq.fanout import Fleet


@pytest.fixture(scope="session")
def ray_fleet() -> Iterator[Fleet]:
    """Two workers; skipped, saying so, where ray is missing."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip('ray is not installed: pip install "avq[ray]"')
    before = ray_processes()
    fleet = Fleet("ray", 2, "local")
    assert fleet.width == 2
    yield fleet
    fleet.close()
    assert not ray_processes() - before, "a closed fleet leaves no process behind"


def ray_processes() -> set[int]:
    """Processes of Ray below this one."""
    children = psutil.Process().children(recursive=True)
    return {child.pid for child in children if any("ray" in word for word in child.cmdline()[:1] or [""])}


def killed_once(folder: Path, number: int) -> int:
    """The square; the worker that is first asked for 3 dies over it, as the kernel would kill it."""
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
                try:
                    busy = process.cmdline()[:1] == ["ray::_call"]
                except psutil.Error:
                    continue
                if busy:
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
