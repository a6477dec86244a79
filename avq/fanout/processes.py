"""Fresh interpreters of this machine as a pool of workers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from typing import Any

from avq.fanout.lost import RETRIES, WorkerLostError


class Processes:
    """Fresh interpreters. When one dies, all of its pool are stopped; unfinished items are done again one by one."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._executor = _new_executor(workers)

    def carry(self, function: Callable[[Any], Any]) -> Any:
        return function

    def send(self, carried: Any, item: Any) -> Future[Any]:
        try:
            return self._executor.submit(carried, item)
        except BrokenProcessPool:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = _new_executor(self.workers)
            return self._executor.submit(carried, item)

    def take(self, handle: Future[Any], carried: Any, item: Any) -> Any:
        try:
            return handle.result()
        except BrokenProcessPool as error:
            why = str(error)
        for _ in range(RETRIES):
            # alone: an item that kills its worker takes no other item with it again
            with closing(Processes(1)) as alone:
                try:
                    return alone.send(carried, item).result()
                except BrokenProcessPool as error:
                    why = str(error)
        raise WorkerLostError(item, why)

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)


def _new_executor(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
