"""A pool of workers with three executors: serial, local processes, or Ray. Results keep the order of the items.

``processes`` starts fresh interpreters (spawn), which inherit no threads, locks or runtimes. ``ray`` uses a running
cluster, or starts one on this machine that listens on the loopback interface only. An exception of a call is raised
again in the caller, for the first failing item. The work of a process that died is repeated.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, TypeVar

from avq.errors import MachineError, RequestError, nearest
from avq.parallel.executors import ProcessExecutor, WorkerLostError

Item = TypeVar("Item")
Result = TypeVar("Result")
#: Substitute for the result of an item whose workers all died.
OnLost = Callable[[Item, MachineError], Result]

EXECUTORS = ("serial", "processes", "ray")
LOCAL = "local"


class _Executor(Protocol):
    """Workers of one kind. ``result`` waits for one handle of ``submit`` and repeats its work if the worker died."""

    workers: int

    def share(self, function: Callable[[Any], Any]) -> Any: ...

    def submit(self, shared: Any, item: Any) -> Any: ...

    def result(self, handle: Any, shared: Any, item: Any) -> Any: ...

    def close(self) -> None: ...


@dataclass
class WorkerPool:
    """Workers for any number of ``map`` calls. Use it as a context manager: processes and clusters are stopped.

    Args:
        executor: "serial", "processes" or "ray".
        workers: processes or Ray tasks at a time; a running Ray cluster brings its own number.
        address: of a running Ray cluster; None or "local" starts one on this machine.

    Raises:
        RequestError: the executor is unknown, or ``workers`` is below 1.
    """

    executor: str = "serial"
    workers: int = 1
    address: str | None = None

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise RequestError(
                f"there is no executor '{self.executor}'", fix=nearest(self.executor, EXECUTORS)
            )
        if self.workers < 1:
            raise RequestError("at least one worker is needed", seen=str(self.workers), fix="workers=1")
        self._executor: _Executor | None = None

    @property
    def is_parallel(self) -> bool:
        """Whether other processes do the work."""
        return self.executor != "serial"

    @property
    def worker_count(self) -> int:
        """Number of items processed at a time; starts the workers."""
        return self._started().workers if self.is_parallel else 1

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        on_lost: OnLost[Item, Result] | None = None,
    ) -> Iterator[Result]:
        """Apply ``function`` to every item, lazily, in item order; at most two items per worker are in flight.

        Args:
            function: for "processes" and "ray" a module-level function or a partial of one. Ray puts it into its
                object store once per machine.
            items: arguments, one per call.
            on_lost: returns the result of an item whose workers died; None raises.

        Returns:
            Results in the order of ``items``.

        Raises:
            MachineError: ray is not installed, or the worker of an item died ``RETRIES`` times more.
        """
        if not self.is_parallel:
            yield from map(function, items)
            return
        executor = self._started()
        shared = executor.share(function)
        in_flight: deque[tuple[Any, Item]] = deque()

        def first() -> Result:
            handle, item = in_flight.popleft()
            try:
                result: Result = executor.result(handle, shared, item)
            except WorkerLostError as error:
                if on_lost is None:
                    raise
                return on_lost(item, error)
            return result

        for item in items:
            in_flight.append((executor.submit(shared, item), item))
            if len(in_flight) >= 2 * executor.workers:
                yield first()
        while in_flight:
            yield first()

    def _started(self) -> _Executor:
        if self._executor is None:
            if self.executor == "ray":
                from avq.parallel.executors import RayExecutor

                self._executor = RayExecutor(self.workers, None if self.address == LOCAL else self.address)
            else:
                self._executor = ProcessExecutor(self.workers)
        return self._executor

    def close(self) -> None:
        """Stop the workers; a later ``map`` starts new ones."""
        if self._executor is not None:
            self._executor.close()
            self._executor = None

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def worker_pool(ray: str | None) -> WorkerPool:
    """Return the pool of a ``--ray`` flag: None runs in this process, "local" on all cores, else on that cluster."""
    if ray is None:
        return WorkerPool()
    return WorkerPool("ray", max(1, len(os.sched_getaffinity(0))), ray)
