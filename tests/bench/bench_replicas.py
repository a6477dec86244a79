"""The replicas of seven head families, built with default options: what the gate says of static and of mixed.

    python tests/bench/bench_replicas.py [--only yolox] [--scenes 100] [--strategy static]

Each file is renamed at random first. mAP50-95 and AP50 of the float model are over scenes that no training and no
calibration saw, boxes under 16 px at network resolution ignored; the rest is the build's own judgement.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import onnx

from avq.builder import build
from avq.builder.pictures.dataset import open_set
from avq.cli.terminal import Terminal
from avq.commands.evaluate import ModelFlags, accuracy_on, detections_of, open_subject
from avq.measure.labels import load_labels
from avq.plugins import PluginHost
from avq.progress import Silent
from avq.scenes import CLASS_NAMES
from avq.scenes.dataset import write_labelled_set
from avq.types import Accuracy, Recipe
from tests.replicas.names import randomised

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "tests" / "replicas").glob("*.onnx"))
HELD_OUT_SEEDS_FROM = 7_000_000
STRATEGIES = ("static", "mixed")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--only", action="append", choices=[f.stem for f in FILES])
    arguments.add_argument("--scenes", type=int, default=100)
    arguments.add_argument("--strategy", action="append", choices=STRATEGIES)
    options = arguments.parse_args()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        seeds = range(HELD_OUT_SEEDS_FROM, HELD_OUT_SEEDS_FROM + options.scenes)
        write_labelled_set(folder / "scenes", seeds=seeds, ignore_below_px=32)
        for file in FILES:
            if not options.only or file.stem in options.only:
                rows.append(_row(file, folder, options.strategy or STRATEGIES))
                print(rows[-1], flush=True)
    Terminal().table("replicas, default options, target cpu, one thread", rows)


def _row(file: Path, folder: Path, strategies: tuple[str, ...]) -> dict[str, object]:
    model = folder / f"{file.stem}.onnx"
    model.write_bytes(randomised(onnx.load(file), seed=7).SerializeToString())
    accuracy = _accuracy(model, folder / "scenes")
    row: dict[str, object] = {
        "replica": file.stem,
        "KB": file.stat().st_size // 1000,
        "float mAP": f"{accuracy.map:.3f}",
        "AP50": f"{accuracy.ap50:.3f}",
    }
    for strategy in strategies:
        row.update({f"{strategy} {key}": value for key, value in _built(model, folder, strategy).items()})
    return row


def _accuracy(model: Path, scenes: Path) -> Accuracy:
    host, report = PluginHost(), Silent()
    pictures = open_set(scenes, report)
    truth = load_labels(scenes / "labels.json", class_map={}, class_names=CLASS_NAMES)
    detector = open_subject(model, pictures, ModelFlags(), host, report)
    return accuracy_on(truth, pictures, detections_of(detector, pictures, report, model.stem))


def _built(model: Path, folder: Path, strategy: str) -> dict[str, Any]:
    output = folder / f"{model.stem}-{strategy}"
    data = ROOT / "calibration_data" / "road_scenes"
    outcome = build(Recipe(model=model, output=output, data=data, strategy=strategy), PluginHost(), Silent())
    chosen = outcome.summary()["chosen"]
    assert chosen["lost"] is not None  # both models have a decoder
    ratio = chosen["ratio"]
    return {
        "lost %": f"{100 * chosen['lost']:.2f}",
        "shift": f"{chosen['confidence_shift']:+.4f}",
        "time ratio": "-" if ratio is None else f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]",
        "INT8 MACs": f"{outcome.int8_mac_share:.2f}",
        "runs on": outcome.chosen.candidate.label,
        "gate": "accepted" if outcome.verdict.accepted else "refused",
    }


if __name__ == "__main__":
    main()
