"""Executors of a worker pool: local processes and Ray tasks. ``ray`` is imported here only, on first use."""

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

#: Further attempts for an item whose worker died.
RETRIES = 3


class WorkerLostError(MachineError):
    """Every worker that processed one item died."""

    def __init__(self, item: object, reason: str) -> None:
        super().__init__(
            f"a worker process died, and so did {RETRIES} more that repeated its work",
            seen=f"{_short(item)}: {reason}",
            fix="check the free memory; use fewer workers, or leave --ray out",
        )


def _short(item: object) -> str:
    text = str(item)
    return text if len(text) <= 120 else f"{text[:117]}..."


#: No telemetry. A cluster started here binds to the loopback interface only: Ray has one switch for that, named after
#: the systems it was introduced for.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_STORE_BYTES = 512 * 2**20


class RayExecutor:
    """Run tasks of one CPU each on Ray. Ray repeats the work of a worker or node that died.

    Args:
        workers: CPUs of a cluster that is started here.
        address: of a running cluster, which keeps its own CPU count; None starts one.

    Raises:
        MachineError: ray is not installed, or the cluster at the address does not respond.
    """

    def __init__(self, workers: int, address: str | None) -> None:
        self._ray = _load_ray(address)
        self._temporary_folder: str | None = None
        self._owns_cluster = not self._ray.is_initialized()
        if self._owns_cluster:
            self._connect(workers, address)
        self.workers = max(1, int(self._ray.cluster_resources().get("CPU", workers)))
        self._task = self._ray.remote(num_cpus=1, max_retries=RETRIES)(_call)

    def _connect(self, workers: int, address: str | None) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        try:
            if address is not None:
                self._ray.init(address=address, **quiet)
                return
            self._temporary_folder = tempfile.mkdtemp(prefix="avq-ray-", dir="/tmp")
            self._ray.init(
                num_cpus=workers,
                include_dashboard=False,
                object_store_memory=_STORE_BYTES,
                _node_ip_address="127.0.0.1",
                _temp_dir=self._temporary_folder,
                **quiet,
            )
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
            self.close()
            raise MachineError(
                f"the Ray cluster at {address} cannot be reached"
                if address
                else "Ray does not start on this machine",
                seen=str(error).splitlines()[0] if str(error) else repr(error),
                fix="use --ray local to start a cluster on this machine, or leave --ray out to work in this process",
            ) from error

    def share(self, function: Callable[[Any], Any]) -> Any:
        return self._ray.put(function)

    def submit(self, shared: Any, item: Any) -> Any:
        return self._task.remote(shared, item)

    def result(self, handle: Any, shared: Any, item: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(handle)
        except errors.RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, Exception) else error from error
        except errors.RayError as error:
            raise WorkerLostError(item, str(error).splitlines()[0]) from error

    def close(self) -> None:
        if self._owns_cluster:
            self._ray.shutdown()
        if self._temporary_folder is not None:
            shutil.rmtree(self._temporary_folder, ignore_errors=True)


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def _load_ray(address: str | None) -> Any:
    for name, value in {**_QUIET, **(_LOOPBACK if address is None else {})}.items():
        os.environ.setdefault(name, value)
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise MachineError(
            "ray is not installed", seen=str(error), fix='pip install "avq[ray]", or leave --ray out'
        ) from error
    if address is None:
        # A program may have imported ray before: ray reads the switch on import.
        importlib.import_module("ray._private.ray_constants").ENABLE_RAY_CLUSTER = False  # type: ignore[attr-defined]
    _log_to_stderr(importlib.import_module("ray._private.worker"))
    return ray


def _log_to_stderr(worker: Any) -> None:
    """Redirect Ray's messages about dead workers to stderr: stdout carries the answer, and Ray has no setting."""
    original = getattr(worker, "print_to_stdstream", None)
    if original is None or getattr(original, "on_stderr", False):
        return

    def print_to_stderr(data: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        original({**data, "is_err": True}, *args, **kwargs)

    print_to_stderr.on_stderr = True  # type: ignore[attr-defined]
    worker.print_to_stdstream = print_to_stderr


class ProcessExecutor:
    """Run items in fresh interpreters. One that dies stops all; unfinished items are repeated one by one."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._executor = _new_executor(workers)

    def share(self, function: Callable[[Any], Any]) -> Any:
        return function

    def submit(self, shared: Any, item: Any) -> Future[Any]:
        try:
            return self._executor.submit(shared, item)
        except BrokenProcessPool:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = _new_executor(self.workers)
            return self._executor.submit(shared, item)

    def result(self, handle: Future[Any], shared: Any, item: Any) -> Any:
        try:
            return handle.result()
        except BrokenProcessPool as error:
            reason = str(error)
        for _ in range(RETRIES):
            # a process per attempt: an item that kills its worker takes no other item with it
            with closing(ProcessExecutor(1)) as executor:
                try:
                    return executor.submit(shared, item).result()
                except BrokenProcessPool as error:
                    reason = str(error)
        raise WorkerLostError(item, reason)

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)


def _new_executor(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
