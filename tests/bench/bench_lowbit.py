"""The built-in detector with few-bit weights: bytes against the INT8 bundle, and accuracy on held-out scenes.

    python tests/bench/bench_lowbit.py [--scenes 500] [--option K=V]

INT8 size: one byte per quantized weight plus its scales, and what stays float (biases, the last layers of the head);
the file of a real ``static`` bundle is shown beside it. Accuracy: mAP50-95 over scenes that no training or
calibration saw, boxes under 16 px at network resolution ignored.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from avq_lowbit.plans import other_bytes, weight_groups

from avq.builder import build
from avq.builder.frontend.analyse import analyse_for_command
from avq.builder.pictures.dataset import open_set
from avq.bundle import MODEL, PLAN_ARRAYS, PLAN_JSON, OpenBundle, open_bundle
from avq.bundle.plan import plan_from_parts
from avq.cli.terminal import Terminal
from avq.commands.evaluate import ModelFlags, accuracy_on, detections_of, open_subject
from avq.demo import builtin_recipe
from avq.measure.labels import load_labels
from avq.plugins import PluginHost
from avq.scenes import CLASS_NAMES, builtin_detector_path
from avq.scenes.dataset import write_labelled_set
from avq.toolbox import place
from avq.types import GraphView, QuantizationPlan, Recipe

ROOT = Path(__file__).resolve().parents[2]
CALIBRATION = ROOT / "calibration_data" / "road_scenes"
HELD_OUT_SEEDS_FROM = 5_000_000


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--scenes", type=int, default=500)
    arguments.add_argument("--option", action="append", default=[], metavar="K=V", help="of the strategy")
    options = arguments.parse_args()
    report, host = Terminal(), PluginHost()
    with tempfile.TemporaryDirectory() as folder:
        scenes = Path(folder) / "scenes"
        seeds = range(HELD_OUT_SEEDS_FROM, HELD_OUT_SEEDS_FROM + options.scenes)
        write_labelled_set(scenes, seeds=seeds, ignore_below_px=32)
        static = builtin_recipe(CALIBRATION, Path(folder) / "static")
        chosen = dict(pair.split("=", 1) for pair in options.option)
        lowbit = replace(
            static, output=Path(folder) / "lowbit", strategy="lowbit", options=chosen, labels=None
        )
        bundles = [_built(recipe, host, report) for recipe in (static, lowbit)]
        names = ("float", "static", "lowbit")
        paths = (builtin_detector_path(), *bundles)
        found = {n: _accuracy(scenes, p, host, report) for n, p in zip(names, paths, strict=True)}
        sizes = _sizes(open_bundle(bundles[1], allow_unaccepted=True), host, report)
        rows = _size_rows(sizes, bundles) + _accuracy_rows(found)
    report.table(f"built-in detector, {options.scenes} held-out scenes", rows)


def _built(recipe: Recipe, host: PluginHost, report: Terminal) -> Path:
    outcome = build(recipe, host, report)
    print("\n".join(outcome.footer()))
    return outcome.folder


def _accuracy(scenes: Path, subject: Path, host: PluginHost, report: Terminal) -> float:
    pictures = open_set(scenes, report)
    truth = load_labels(scenes / "labels.json", class_map={}, class_names=CLASS_NAMES)
    detector = open_subject(subject, pictures, ModelFlags(), host, report)
    return accuracy_on(truth, pictures, detections_of(detector, pictures, report, subject.name)).map


def _sizes(bundle: OpenBundle, host: PluginHost, report: Terminal) -> dict[str, int]:
    """Bytes of all constants: as float, at 8 bits, and as the bundle's plan says."""
    _, analysis = analyse_for_command(builtin_detector_path(), open_set(CALIBRATION), host, report)
    graph = analysis.model.view
    plan = plan_from_parts(bundle.read(PLAN_JSON), bundle.read(PLAN_ARRAYS))
    bits = {p.edge.tensor: p.bits for p in plan.points if p.edge.tensor in graph.constants}
    return {
        "float": weights_in(graph, plan, dict.fromkeys(bits, 32)),
        "INT8": weights_in(graph, plan, dict.fromkeys(bits, 8)),
        "lowbit": weights_in(graph, plan, bits),
    }


def weights_in(graph: GraphView, plan: QuantizationPlan, bits: dict[str, int]) -> int:
    """Bytes of all constants with the quantized ones in ``bits``."""
    groups = [g for g in weight_groups(graph, place(graph)) if g.tensor in bits]
    return sum(g.bytes_at(bits[g.tensor]) for g in groups) + other_bytes(graph, groups)


def _size_rows(sizes: dict[str, int], bundles: Sequence[Path]) -> list[dict[str, object]]:
    files = {name: (b / MODEL).stat().st_size for name, b in zip(("static", "lowbit"), bundles, strict=True)}
    return [
        {"measure": "weights, float / INT8 / lowbit, bytes", "value": " / ".join(map(str, sizes.values()))},
        {"measure": "lowbit / INT8 size", "value": f"{100 * sizes['lowbit'] / sizes['INT8']:.1f} % (bar 60)"},
        {"measure": "model.onnx, static / lowbit, bytes", "value": " / ".join(map(str, files.values()))},
        {"measure": "lowbit / static file", "value": f"{100 * files['lowbit'] / files['static']:.1f} %"},
    ]


def _accuracy_rows(found: dict[str, float]) -> list[dict[str, object]]:
    kept = 100 * found["lowbit"] / found["float"]
    return [
        {
            "measure": "mAP50-95 float / static / lowbit",
            "value": " / ".join(f"{v:.4f}" for v in found.values()),
        },
        {"measure": "lowbit / float mAP", "value": f"{kept:.2f} % (bar 98)"},
    ]


if __name__ == "__main__":
    main()
