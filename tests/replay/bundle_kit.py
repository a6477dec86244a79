"""Real bundles of the built-in detector without the minutes of a build: analysis, planned, lowered, written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from avq.builder.context import BuildContext, open_context
from avq.builder.lower import lower
from avq.builder.stage import drift_parts
from avq.bundle import EngineUse, Manifest, StrategyUse, staging_folder, write_bundle
from avq.bundle.plan import plan_to_parts
from avq.contract.workbench import on_workbench
from avq.hookspecs import CalibrationStats, Workbench
from avq.plugins import PluginHost
from avq.progress import Silent
from avq.scenes import builtin_detector_path
from avq.toolbox import Ranging, assemble, place, wanted_statistics
from avq.types import Calibrator, GraphView, NodePrecision, QuantizationPlan, Recipe
from tests.e2e.conftest import CALIBRATION

BUILTIN = builtin_detector_path()


@lru_cache(maxsize=2)
def known(model: Path = BUILTIN) -> BuildContext:
    """Open a float detector of drawn scenes."""
    recipe = Recipe(model=model, output=Path(), data=CALIBRATION, strategy="float")
    return open_context(recipe, PluginHost(), Silent())


@dataclass(frozen=True)
class Counted:
    """A network's activations, counted: any calibrator's plan follows without inference."""

    graph: GraphView
    keep_float: frozenset[str]
    stats: CalibrationStats


@lru_cache(maxsize=2)
def counted(model: Path = BUILTIN) -> Counted:
    def ask(graph: GraphView, bench: Workbench) -> Counted:
        stats = bench.collect(wanted_statistics(graph, place(graph, ())))
        return Counted(graph, frozenset(bench.keep_float), stats)

    return on_workbench(ask, model=model, data=CALIBRATION)


def int8_plan(
    model: Path = BUILTIN, *, everything: bool = False, calibrator: Calibrator = "minmax"
) -> QuantizationPlan:
    """INT8, symmetric: everything but what is better kept float, or really everything."""
    known_counts = counted(model)
    graph = known_counts.graph
    placements = place(graph, () if everything else known_counts.keep_float)
    precisions = {p.node: NodePrecision("int8", "test") for p in placements}
    ranging = Ranging(calibrator, 99.99, True)
    return assemble(graph, placements, known_counts.stats, ranging, precisions, owner=("test", "1"))


def write_real_bundle(
    folder: Path,
    plan: QuantizationPlan | None = None,
    *,
    model: Path = BUILTIN,
    probe: bool = False,
    **preprocess: Any,
) -> Path:
    """A bundle on onnxruntime, one thread; of the float model without a plan.

    ``probe`` adds the drift probe and its reference.
    ``preprocess`` are fields in which the bundle sees pictures otherwise than the model was meant to.
    """
    analysis = known(model).analysis
    proto, view = analysis.model.proto, analysis.model.view
    manifest = Manifest(
        avq_version="0.1.0",
        created="2026-01-02T03:04:05Z",
        accepted=True,
        strategy=StrategyUse(name="static", owner="avq_static", version="0.1.0"),
        target="cpu",
        engine=EngineUse(
            name="onnxruntime", version="1", precision="int8", threads=1, encoding="s8" if plan else ""
        ),
        input=view.inputs[0],
        outputs=view.outputs,
        preprocess=replace(analysis.spec, **preprocess),
        decoder=analysis.decoder,
        class_names=analysis.class_names,
        graph_digest=view.digest,
        plan_digest=plan.digest if plan else "",
        metrics={"chosen": {"p50_ms": 5.0}},
    )
    parts: dict[str, bytes | Path] = {"model.onnx": proto.SerializeToString()}
    if plan is not None:
        parts = {"model.onnx": lower(proto, plan, "s8")}
        parts["plan.json"], parts["plan.npz"] = plan_to_parts(plan)
        if probe:
            parts |= drift_parts(plan, known(model))
    write_bundle(staging_folder(folder), folder, manifest, parts)
    return folder
