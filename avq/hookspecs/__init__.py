"""Hooks of a plugin, and the protocols that its objects follow.

Entry-point group ``avq``. The registering hooks take no arguments and return a sequence; names are unique
over all plugins. No hook is called per frame.

A runtime-checkable protocol is optional: an object that has all its members has the feature, found by
``isinstance``. ``python -m avq.contract`` refuses objects that have some of them only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pluggy

from avq.hookspecs.quantizing import (
    CalibrationStats,
    EncodingsOptions,
    ImportingQuantizer,
    LimitedQuantizer,
    Quantizer,
    Workbench,
)
from avq.hookspecs.serving import (
    AlertSource,
    CompilingEngine,
    Decoder,
    Engine,
    EventSink,
    FileSource,
    FrameSource,
    LiveSourceType,
    PlannedSession,
    ProfilingEngine,
    ReportingSink,
    Session,
    Sink,
    SinkType,
    SourceType,
    TimingSink,
    UriChecker,
)
from avq.types import Finding, GraphView, Recipe

hookspec = pluggy.HookspecMarker("avq")
hookimpl = pluggy.HookimplMarker("avq")


@hookspec
def avq_register_quantizers() -> Sequence[Quantizer]:  # type: ignore[empty-body]
    """Quantization strategies this plugin brings. Called once, when a build or ``avq plugins`` starts."""


@hookspec
def avq_register_engines() -> Sequence[Engine]:  # type: ignore[empty-body]
    """Runtimes this plugin brings. Called once; must not import the vendor's library yet."""


@hookspec
def avq_register_decoders() -> Sequence[Decoder]:  # type: ignore[empty-body]
    """Head families this plugin brings, tried after the built-in ones."""


@hookspec
def avq_register_sources() -> Sequence[SourceType]:  # type: ignore[empty-body]
    """Camera and file types this plugin brings."""


@hookspec
def avq_register_sinks() -> Sequence[SinkType]:  # type: ignore[empty-body]
    """Message sinks this plugin brings."""


@hookspec
def avq_keep_float(graph: GraphView, recipe: Recipe) -> Mapping[str, str]:  # type: ignore[empty-body]
    """Nodes that must stay float: node name -> reason. All answers are united. Called before planning."""


@hookspec
def avq_check_bundle(bundle: Path, recipe: Recipe) -> Sequence[Finding]:  # type: ignore[empty-body]
    """Look at the staged bundle after verification; one finding of severity "error" rejects it."""


@hookspec
def avq_build_finished(bundle: Path, report: Mapping[str, Any]) -> None:
    """The bundle is in place. ``report`` is the object ``avq build --json`` prints."""


@hookspec
def avq_budget_missed(event: Mapping[str, Any]) -> None:
    """The latency budget is violated. Off the frame path, from a bounded queue, each plugin isolated."""


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
    "hookimpl",
    "hookspec",
    "avq_budget_missed",
    "avq_build_finished",
    "avq_check_bundle",
    "avq_keep_float",
    "avq_register_decoders",
    "avq_register_engines",
    "avq_register_quantizers",
    "avq_register_sinks",
    "avq_register_sources",
]
