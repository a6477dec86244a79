"""avq: a perception inference service for vehicles with plugin quantizers.

Everything a plugin may import is here: the types, the errors, ``hookimpl`` and the protocols.
"""

from __future__ import annotations

from avq import errors, types
from avq.hookspecs import (
    CalibrationStats,
    Decoder,
    Engine,
    FrameSource,
    Quantizer,
    Session,
    Sink,
    SinkType,
    SourceType,
    Workbench,
    hookimpl,
)

__version__ = "0.1.0"

__all__ = [
    "CalibrationStats",
    "Decoder",
    "Engine",
    "FrameSource",
    "Quantizer",
    "Session",
    "Sink",
    "SinkType",
    "SourceType",
    "Workbench",
    "__version__",
    "errors",
    "hookimpl",
    "types",
]
