"""Builds of replicas for TensorRT for RTX, whose parser and builder run without a card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from avq.build import build
from avq.build.lower import lower
from avq.build.outcome import Outcome
from avq.build.pictures.dataset import open_set
from avq.build.understand.host import understand_alone
from avq.bundle import PLAN_ARRAYS, PLAN_JSON, open_bundle
from avq.bundle.plan import plan_from_parts
from avq.plugins import PluginHost
from avq.progress import Silent
from avq.types import Recipe

HERE = Path(__file__).parent
MODELS = ("yolox", "yolov8", "yolov5", "yolov6", "ssd", "retinanet", "rtdetr")
#: `dynamic` refuses TensorRT by itself: its products have scales at run time.
STRATEGIES = ("static", "mixed", "lowbit", "float", "qat")
ARCHITECTURES = ("sm86", "sm89", "sm120")


def build_for_rtx(
    model: str, strategy: str, pictures: Path, folder: Path, architectures: Sequence[str] = ("sm89",)
) -> Outcome:
    """One replica through one strategy, parsed and built. ``qat`` takes over what ``static`` wrote.

    Raises ModelError when the parser or the builder refuses the file.
    """
    source = HERE / f"{model}.onnx"
    if strategy == "qat":
        source = _quantized(model, pictures, folder, architectures)
    recipe = Recipe(
        model=source,
        output=folder / f"{strategy}.avq",
        data=pictures,
        strategy=strategy,
        target="tensorrt-rtx",
        gpu_arch=tuple(architectures),
        decoder="none" if strategy == "qat" else None,
        gate=False,
    )
    return build(recipe, PluginHost(), Silent())


def _quantized(model: str, pictures: Path, folder: Path, architectures: Sequence[str]) -> Path:
    """The replica with Q/DQ in it, float beside them, as a training framework would export it."""
    if not (folder / "static.avq").exists():
        build_for_rtx(model, "static", pictures, folder, architectures)
    bundle = open_bundle(folder / "static.avq", allow_unaccepted=True)
    plan = replace(plan_from_parts(bundle.read(PLAN_JSON), bundle.read(PLAN_ARRAYS)), precisions={})
    _, understood = understand_alone(HERE / f"{model}.onnx", open_set(pictures), PluginHost(), Silent())
    path = folder / f"{model}-qdq.onnx"
    path.write_bytes(lower(understood.model.proto, plan, "s8"))
    return path
