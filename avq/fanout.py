"""One function over many items, by one of three executors, results in the order of the items.

``processes`` starts fresh interpreters (spawn): nothing of the parent's threads, locks or runtimes is
inherited. ``ray`` uses a Ray cluster. What a call raises is raised here, with the first failing item's error.
"""

from __future__ import annotations

import importlib
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from avq.errors import MachineError, RequestError, nearest

Item = TypeVar("Item")
Result = TypeVar("Result")

EXECUTORS = ("serial", "processes", "ray")


def fan_out(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    executor: str = "serial",
    workers: int = 1,
    address: str | None = None,
) -> Iterator[Result]:
    """``function`` of every item, lazily, in item order; at most ``2 * workers`` items are under way.

    Args:
        function: for "processes" and "ray" a module-level function or a partial of one.
        items: what it is called with, one argument each.
        executor: "serial" | "processes" | "ray".
        workers: processes or Ray tasks at a time.
        address: of a Ray cluster; a local one is started when None.

    Raises:
        RequestError: unknown executor. MachineError: ray is not installed, or a process died.
    """
    if executor not in EXECUTORS:
        raise RequestError(f"there is no executor '{executor}'", fix=nearest(executor, EXECUTORS))
    if workers < 1:
        raise RequestError("at least one worker is needed", seen=str(workers), fix="workers=1")
    if executor == "serial":
        return map(function, items)
    if executor == "processes":
        return _processes(function, items, workers)
    return _ray(_load_ray(), function, items, workers, address)


def _processes(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            yield from _in_order(lambda item: pool.submit(function, item), items, workers, Future.result)
        except BrokenProcessPool as error:
            raise MachineError(
                "a worker process died",
                seen=str(error),
                fix="was it out of memory? try fewer workers, or executor serial",
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _ray(
    ray: Any, function: Callable[[Item], Result], items: Iterable[Item], workers: int, address: str | None
) -> Iterator[Result]:
    ours = not ray.is_initialized()
    if ours:
        # A local cluster gets as many CPUs as workers; a given one keeps its own.
        own: dict[str, Any] = (
            {"address": address} if address else {"num_cpus": workers, "include_dashboard": False}
        )
        ray.init(log_to_driver=False, logging_level="ERROR", **own)
    try:
        task = ray.remote(_call)
        yield from _in_order(
            lambda item: task.remote(function, item), items, workers, lambda ref: _ray_result(ray, ref)
        )
    finally:
        if ours:
            ray.shutdown()


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def _ray_result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


def _in_order(
    submit: Callable[[Item], Any], items: Iterable[Item], workers: int, result: Callable[[Any], Result]
) -> Iterator[Result]:
    """Keep a bounded number of items under way; hand out results in order."""
    under_way: deque[Any] = deque()
    for item in items:
        under_way.append(submit(item))
        if len(under_way) >= 2 * workers:
            yield result(under_way.popleft())
    while under_way:
        yield result(under_way.popleft())


def _load_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MachineError(
            "ray is not installed here", seen=str(error), fix='pip install "avq[ray]", or executor processes'
        ) from error
