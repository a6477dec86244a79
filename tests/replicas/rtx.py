"""Builds of replicas for TensorRT for RTX, whose parser and builder run without a card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from avq.builder import build
from avq.builder.frontend.analyse import analyse_for_command
from avq.builder.lint import lint_errors
from avq.builder.lower import lower
from avq.builder.outcome import Outcome
from avq.builder.pictures.dataset import open_set
from avq.bundle import MODEL, PLAN_ARRAYS, PLAN_JSON, open_bundle
from avq.bundle.plan import plan_from_parts
from avq.plugins import PluginHost
from avq.progress import Silent
from avq.types import Recipe

HERE = Path(__file__).parent
#: Heads that answer on every cell; heads with anchors of many shapes, with boxes relative to them, with queries.
DENSE, OTHERS = ("yolox", "yolov8", "yolov5", "yolov6"), ("ssd", "retinanet", "rtdetr")
MODELS = (*DENSE, *OTHERS)
#: `dynamic` refuses TensorRT by itself: its products have scales at run time.
STRATEGIES = ("static", "mixed", "lowbit", "float", "qat")
ARCHITECTURES = ("sm86", "sm89", "sm120")
#: The same kinds of files for a tenth of the search: one calibrator, few plans, all the INT4 that the target takes.
QUICK: Mapping[str, Mapping[str, str]] = {
    "static": {"calibrator": "minmax", "equalize": "off", "rounding": "nearest", "bias_correction": "off"},
    "mixed": {"pictures": "1", "probes": "1", "maps": "6", "steps": "2"},
    "lowbit": {
        "pictures": "1",
        "probes": "1",
        "points": "2",
        "rounds": "0",
        "correction": "false",
        "target_mb": "0.001",
    },
}


def build_for_rtx(
    model: str,
    strategy: str,
    pictures: Path,
    folder: Path,
    architectures: Sequence[str] = ("sm89",),
    options: Mapping[str, Mapping[str, str]] | None = None,
) -> Outcome:
    """One replica through one strategy, parsed and built. ``qat`` takes over what ``static`` wrote.

    Args:
        options: of each strategy; its own defaults without.

    Raises ModelError when the parser or the builder refuses the file.
    """
    asked = options or {}
    source = HERE / f"{model}.onnx"
    if strategy == "qat":
        source = _quantized(model, pictures, folder, architectures, asked)
    recipe = Recipe(
        model=source,
        output=folder / f"{strategy}.avq",
        data=pictures,
        strategy=strategy,
        target="tensorrt-rtx",
        options=asked.get(strategy, {}),
        gpu_arch=tuple(architectures),
        decoder="none" if strategy == "qat" else None,
        gate=False,
    )
    return build(recipe, PluginHost(), Silent())


def require_engine(
    model: str, strategy: str, pictures: Path, folder: Path
) -> tuple[Outcome, onnx.ModelProto]:
    """A quick build and its file, after the real parser and builder took it and lint found no error."""
    folder.mkdir(exist_ok=True)
    outcome = build_for_rtx(model, strategy, pictures, folder, options=QUICK)
    assert [row["engine kB"] for row in outcome.compiled.rows if row["engine kB"]], outcome.compiled.remarks
    assert (outcome.int8_mac_share > 0.5) == (strategy != "float")
    bundle = open_bundle(folder / f"{strategy}.avq", allow_unaccepted=True)
    assert bundle.has("engine.sm89") and not lint_errors(bundle.read(MODEL), "tensorrt-rtx")
    return outcome, onnx.load_model_from_string(bundle.read(MODEL))


def _quantized(
    model: str,
    pictures: Path,
    folder: Path,
    architectures: Sequence[str],
    options: Mapping[str, Mapping[str, str]],
) -> Path:
    """The replica with Q/DQ in it, float beside them, as a training framework would export it."""
    if not (folder / "static.avq").exists():
        build_for_rtx(model, "static", pictures, folder, architectures, options)
    bundle = open_bundle(folder / "static.avq", allow_unaccepted=True)
    plan = replace(plan_from_parts(bundle.read(PLAN_JSON), bundle.read(PLAN_ARRAYS)), precisions={})
    _, analysis = analyse_for_command(HERE / f"{model}.onnx", open_set(pictures), PluginHost(), Silent())
    path = folder / f"{model}-qdq.onnx"
    path.write_bytes(lower(analysis.model.proto, plan, "s8"))
    return path
