"""avq: a perception inference service for vehicles with plugin quantizers.

Public names for plugins: types, errors, ``hookimpl`` and the protocols. Strategies also import ``avq.toolbox``.
"""

from __future__ import annotations

from avq import errors, types
from avq.hookspecs import (
    AlertSource,
    CalibrationStats,
    CompilingEngine,
    Decoder,
    EncodingsOptions,
    Engine,
    EventSink,
    FileSource,
    FrameSource,
    ImportingQuantizer,
    LimitedQuantizer,
    LiveSourceType,
    PlannedSession,
    ProfilingEngine,
    Quantizer,
    ReportingSink,
    Session,
    Sink,
    SinkType,
    SourceType,
    TimingSink,
    UriChecker,
    Workbench,
    hookimpl,
)

__version__ = "0.1.0"

__all__ = [
    "AlertSource",
    "CalibrationStats",
    "CompilingEngine",
    "Decoder",
    "EncodingsOptions",
    "Engine",
    "EventSink",
    "FileSource",
    "FrameSource",
    "ImportingQuantizer",
    "LimitedQuantizer",
    "LiveSourceType",
    "PlannedSession",
    "ProfilingEngine",
    "Quantizer",
    "ReportingSink",
    "Session",
    "Sink",
    "SinkType",
    "SourceType",
    "TimingSink",
    "UriChecker",
    "Workbench",
    "__version__",
    "errors",
    "hookimpl",
    "types",
]
