"""Ray tasks as a pool of workers; ``ray`` is imported here only, and only when it is asked for."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from typing import Any

from avq.errors import MachineError

# The error of an item whose every worker died.

#: How often an item whose worker died is tried again.
RETRIES = 3


class WorkerLostError(MachineError):
    """The workers of one item died, every time it was tried."""

    def __init__(self, item: object, why: str) -> None:
        super().__init__(
            "a worker process died, and so did those that did its work again",
            seen=f"{_short(item)}: {why}",
            fix="was it out of memory? try fewer workers, or without --ray",
        )


def _short(item: object) -> str:
    text = str(item)
    return text if len(text) <= 120 else f"{text[:117]}..."


#: No telemetry. A cluster that is started here opens its ports on the loopback only: Ray has one switch for that,
#: named after the systems it was made for.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_STORE_BYTES = 512 * 2**20


class RayPool:
    """Tasks of one CPU each. Ray does the work of a worker or node that died again.

    Args:
        workers: CPUs of the cluster that is started here.
        address: of a running cluster, which keeps its own number; None starts one.

    Raises:
        MachineError: ray is not installed, or no cluster answers at the address.
    """

    def __init__(self, workers: int, address: str | None) -> None:
        self._ray = _load_ray(address)
        self._folder: str | None = None
        self._ours = not self._ray.is_initialized()
        if self._ours:
            self._connect(workers, address)
        self.workers = max(1, int(self._ray.cluster_resources().get("CPU", workers)))
        self._task = self._ray.remote(num_cpus=1, max_retries=RETRIES)(_call)

    def _connect(self, workers: int, address: str | None) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        try:
            if address is not None:
                self._ray.init(address=address, **quiet)
                return
            self._folder = tempfile.mkdtemp(prefix="avq-ray-", dir="/tmp")
            self._ray.init(
                num_cpus=workers,
                include_dashboard=False,
                object_store_memory=_STORE_BYTES,
                _node_ip_address="127.0.0.1",
                _temp_dir=self._folder,
                **quiet,
            )
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
            self.close()
            raise MachineError(
                f"Ray cannot be reached at {address}" if address else "Ray does not start here",
                seen=str(error).splitlines()[0] if str(error) else repr(error),
                fix="--ray local starts a cluster on this machine; without --ray the work is done in this process",
            ) from error

    def carry(self, function: Callable[[Any], Any]) -> Any:
        return self._ray.put(function)

    def send(self, carried: Any, item: Any) -> Any:
        return self._task.remote(carried, item)

    def take(self, handle: Any, carried: Any, item: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(handle)
        except errors.RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, Exception) else error from error
        except errors.RayError as error:
            raise WorkerLostError(item, str(error).splitlines()[0]) from error

    def close(self) -> None:
        if self._ours:
            self._ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def _load_ray(address: str | None) -> Any:
    for name, value in {**_QUIET, **(_LOOPBACK if address is None else {})}.items():
        os.environ.setdefault(name, value)
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise MachineError(
            "ray is not installed here", seen=str(error), fix='pip install "avq[ray]", or leave --ray out'
        ) from error
    if address is None:
        # For a program that imported ray before: the switch is read on import.
        importlib.import_module("ray._private.ray_constants").ENABLE_RAY_CLUSTER = False  # type: ignore[attr-defined]
    _talk_on_stderr(importlib.import_module("ray._private.worker"))
    return ray


def _talk_on_stderr(worker: Any) -> None:
    """Ray tells of dead workers on standard output, which is the answer's; there is no setting for it."""
    told = getattr(worker, "print_to_stdstream", None)
    if told is None or getattr(told, "on_stderr", False):
        return

    def tell(data: dict[str, Any], *rest: Any, **named: Any) -> None:
        told({**data, "is_err": True}, *rest, **named)

    tell.on_stderr = True  # type: ignore[attr-defined]
    worker.print_to_stdstream = tell


# Fresh interpreters of this machine as a pool of workers.


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
