"""One function over many items: in this process, in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

from avq.fanout.fleet import EXECUTORS, LOCAL, Fleet, fan_out, fleet_of
from avq.fanout.lost import WorkerLostError

__all__ = ["EXECUTORS", "LOCAL", "Fleet", "WorkerLostError", "fan_out", "fleet_of"]
