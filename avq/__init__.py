"""avq: a perception inference service for vehicles with plugin quantizers.

Everything a plugin may import is here: the types, the errors, ``hookimpl`` and the protocols.
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
