"""Apply one function to many items: in this process, in local processes, or on a Ray cluster."""

from __future__ import annotations

from avq.parallel.executors import WorkerLostError
from avq.parallel.pool import EXECUTORS, LOCAL, WorkerPool, worker_pool

__all__ = ["EXECUTORS", "LOCAL", "WorkerLostError", "WorkerPool", "worker_pool"]
