"""The daemon: capture processes, an inbox, one loop, sinks on their own threads, and exact frame accounting."""

from __future__ import annotations

from avq.daemon.loop import serve_bundle
from avq.daemon.metrics import Failure, RunSummary
from avq.daemon.modes import ActiveModes, Mode, warm_up
from avq.daemon.options import CameraOptions, RunOptions
from avq.daemon.pipeline import FrameResult, Pipeline
from avq.daemon.registry import sink_types, source_providers, source_types
from avq.daemon.step import Parts, step
from avq.daemon.supervisor import RestartPolicy

__all__ = [
    "CameraOptions",
    "Failure",
    "Mode",
    "Parts",
    "Pipeline",
    "RestartPolicy",
    "RunOptions",
    "RunSummary",
    "ActiveModes",
    "FrameResult",
    "serve_bundle",
    "sink_types",
    "source_providers",
    "source_types",
    "step",
    "warm_up",
]
