"""Real bundles of the built-in detector without the minutes of a build: understood, planned, lowered, written."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from avq.build.lower import lower
from avq.build.pictures import open_pictures
from avq.build.probe_set import ProbeSet, prepare_probe_set
from avq.build.request import Request, check
from avq.build.understand.frontend import Understood
from avq.build.understand.host import understand_model
from avq.bundle import EngineUse, Manifest, StrategyUse, staging_folder, write_bundle
from avq.bundle.plan import plan_to_parts
from avq.contract.workbench import on_workbench
from avq.hookspecs import Workbench
from avq.plugins import PluginHost
from avq.progress import Silent
from avq.scenes import builtin_detector_path
from avq.toolbox import Ranging, assemble, place, wanted_statistics
from avq.types import GraphView, NodePrecision, QuantizationPlan, Recipe
from tests.e2e.conftest import CALIBRATION

BUILTIN = builtin_detector_path()


@dataclass(frozen=True)
class Known:
    """A float detector of drawn scenes, understood."""

    request: Request
    understood: Understood
    probe_set: ProbeSet


@lru_cache(maxsize=2)
def known(model: Path = BUILTIN) -> Known:
    recipe = Recipe(model=model, output=Path(), data=CALIBRATION, strategy="float")
    request = check(recipe, PluginHost())
    pictures = open_pictures(recipe, Silent())
    understood = understand_model(request, pictures.samples, Silent())
    return Known(request, understood, prepare_probe_set(request, understood, pictures, Silent()))


@lru_cache(maxsize=2)
def int8_plan(model: Path = BUILTIN, *, everything: bool = False) -> QuantizationPlan:
    """INT8 by min-max, symmetric: everything but what is better kept float, or really everything."""

    def ask(graph: GraphView, bench: Workbench) -> QuantizationPlan:
        placements = place(graph, () if everything else bench.keep_float)
        stats = bench.collect(wanted_statistics(graph, placements))
        precisions = {p.node: NodePrecision("int8", "test") for p in placements}
        return assemble(
            graph, placements, stats, Ranging("minmax", 99.99, True), precisions, owner=("test", "1")
        )

    return on_workbench(ask, model=model, data=CALIBRATION)


def write_real_bundle(folder: Path, plan: QuantizationPlan | None = None, *, model: Path = BUILTIN) -> Path:
    """A bundle on onnxruntime, one thread; of the float model without a plan."""
    understood = known(model).understood
    proto, view = understood.model.proto, understood.model.view
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
        preprocess=understood.spec,
        decoder=understood.decoder,
        class_names=understood.class_names,
        graph_digest=view.digest,
        plan_digest=plan.digest if plan else "",
        metrics={"chosen": {"p50_ms": 5.0}},
    )
    parts: dict[str, bytes | Path] = {"model.onnx": proto.SerializeToString()}
    if plan is not None:
        parts = {"model.onnx": lower(proto, plan, "s8")}
        parts["plan.json"], parts["plan.npz"] = plan_to_parts(plan)
    write_bundle(staging_folder(folder), folder, manifest, parts)
    return folder
