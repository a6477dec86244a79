"""An example plugin: the module that the entry point names, with one function per hook it implements.

Only ``avq``, ``avq.types``, ``avq.errors`` and ``avq.toolbox`` are imported: those names are kept stable.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avq import Engine, Quantizer, SinkType, SourceType, hookimpl
from avq.types import Finding, GraphView, Recipe
from avq_outside.engine import DnnEngine
from avq_outside.house_rules import first_layer, size_findings
from avq_outside.journal import note
from avq_outside.quantizer import MarginQuantizer
from avq_outside.sink import TallySinkType
from avq_outside.source import RampSourceType


@hookimpl
def avq_register_quantizers() -> list[Quantizer]:
    return [MarginQuantizer()]


@hookimpl
def avq_register_engines() -> list[Engine]:
    return [DnnEngine()]


@hookimpl
def avq_register_sources() -> list[SourceType]:
    return [RampSourceType()]


@hookimpl
def avq_register_sinks() -> list[SinkType]:
    return [TallySinkType()]


@hookimpl
def avq_keep_float(graph: GraphView, recipe: Recipe) -> Mapping[str, str]:
    return first_layer(graph) if recipe.strategy == MarginQuantizer.name else {}


@hookimpl
def avq_check_bundle(bundle: Path) -> list[Finding]:
    return size_findings(bundle)


@hookimpl
def avq_build_finished(bundle: Path, report: Mapping[str, Any]) -> None:
    note("build_finished", bundle=str(bundle), accepted=report["accepted"], engine=report["engine"])


@hookimpl
def avq_budget_missed(event: Mapping[str, Any]) -> None:
    note("budget_missed", **event)
