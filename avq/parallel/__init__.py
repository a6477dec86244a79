"""One function over many items: in this process, in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

from avq.parallel.executors import WorkerLostError
from avq.parallel.pool import EXECUTORS, LOCAL, Fleet, fan_out, fleet_of

__all__ = ["EXECUTORS", "LOCAL", "Fleet", "WorkerLostError", "fan_out", "fleet_of"]
