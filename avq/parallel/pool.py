"""One function over many items, by one of three executors, results in the order of the items.

``processes`` starts fresh interpreters (spawn): nothing of the parent's threads, locks or runtimes is
inherited. ``ray`` uses a Ray cluster, or starts one on this machine that listens on the loopback only. What a call
raises is raised here, with the first failing item's error; work of a process that died is done again.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, TypeVar

from avq.errors import MachineError, RequestError, nearest
from avq.parallel.executors import Processes, WorkerLostError

Item = TypeVar("Item")
Result = TypeVar("Result")
#: What stands in for the result of an item whose every worker died.
OnLost = Callable[[Item, MachineError], Result]

EXECUTORS = ("serial", "processes", "ray")
LOCAL = "local"


def fan_out(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    executor: str = "serial",
    workers: int = 1,
    address: str | None = None,
) -> Iterator[Result]:
    """``function`` of every item, lazily, in item order, by workers that exist for this call only.

    Arguments and errors as in :class:`Fleet` and :meth:`Fleet.map`.
    """
    fleet = Fleet(executor, workers, address)
    return map(function, items) if executor == "serial" else _owned(fleet, function, items)


def _owned(fleet: Fleet, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    with fleet:
        yield from fleet.map(function, items)


class _Pool(Protocol):
    """Workers of one kind. A handle of ``send`` is awaited once by ``take``, which knows how to do it again."""

    workers: int

    def carry(self, function: Callable[[Any], Any]) -> Any: ...

    def send(self, carried: Any, item: Any) -> Any: ...

    def take(self, handle: Any, carried: Any, item: Any) -> Any: ...

    def close(self) -> None: ...


@dataclass
class Fleet:
    """Workers for any number of ``map`` calls; a context manager where there is something to stop.

    Args:
        executor: "serial" | "processes" | "ray".
        workers: processes or Ray tasks at a time; a given Ray cluster brings its own number.
        address: of a Ray cluster; None or "local" starts one here.

    Raises:
        RequestError: unknown executor, or no worker at all.
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
        self._pool: _Pool | None = None

    @property
    def spreads(self) -> bool:
        """Whether more than this process works."""
        return self.executor != "serial"

    @property
    def width(self) -> int:
        """How many items are worked on at a time; starts the workers."""
        return self._started().workers if self.spreads else 1

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        on_lost: OnLost[Item, Result] | None = None,
    ) -> Iterator[Result]:
        """``function`` of every item, lazily, in item order; at most two items per worker are under way.

        Args:
            function: for "processes" and "ray" a module-level function or a partial of one; Ray keeps what it
                carries in its object store, once per machine.
            items: what it is called with, one argument each.
            on_lost: gives the result of an item whose workers died; None raises.

        Raises:
            MachineError: ray is not installed, or the worker of an item died ``RETRIES`` times more.
        """
        if not self.spreads:
            yield from map(function, items)
            return
        pool = self._started()
        carried = pool.carry(function)
        under_way: deque[tuple[Any, Item]] = deque()

        def first() -> Result:
            handle, item = under_way.popleft()
            try:
                result: Result = pool.take(handle, carried, item)
            except WorkerLostError as error:
                if on_lost is None:
                    raise
                return on_lost(item, error)
            return result

        for item in items:
            under_way.append((pool.send(carried, item), item))
            if len(under_way) >= 2 * pool.workers:
                yield first()
        while under_way:
            yield first()

    def _started(self) -> _Pool:
        if self._pool is None:
            if self.executor == "ray":
                from avq.parallel.executors import RayPool

                self._pool = RayPool(self.workers, None if self.address == LOCAL else self.address)
            else:
                self._pool = Processes(self.workers)
        return self._pool

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def fleet_of(ray: str | None) -> Fleet:
    """The fleet of a ``--ray`` flag: None works here; "local" takes this machine's cores; else an address."""
    if ray is None:
        return Fleet()
    return Fleet("ray", max(1, len(os.sched_getaffinity(0))), ray)
