"""The built-in detector: float against the static INT8 bundle, in accuracy on held-out scenes and in time.

    python tests/bench/bench_builtin.py [--scenes 500]

Accuracy: mAP50-95 over scenes no training or calibration saw, boxes under 16 px at network resolution ignored.
Time: one thread, interleaved and paired with the float model in onnxruntime FP32.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from avq.builder import build
from avq.builder.frontend.analyse import analyse_for_command
from avq.builder.pictures.dataset import open_set
from avq.bundle import GOLDEN, open_bundle
from avq.cli.terminal import Terminal
from avq.commands.evaluate import ModelFlags, accuracy_on, detections_of, open_subject
from avq.demo import builtin_recipe
from avq.measure.detector import open_session
from avq.measure.labels import load_labels
from avq.measure.latency import paired_latency, ratio_interval
from avq.plugins import PluginHost
from avq.scenes import CLASS_NAMES, builtin_detector_path
from avq.scenes.dataset import write_labelled_set
from avq.types import SessionOptions

ROOT = Path(__file__).resolve().parents[2]
HELD_OUT_SEEDS_FROM = 5_000_000


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--scenes", type=int, default=500)
    arguments.add_argument("--rounds", type=int, default=200)
    options = arguments.parse_args()
    report, host = Terminal(), PluginHost()
    calibration = ROOT / "calibration_data" / "road_scenes"
    with tempfile.TemporaryDirectory() as folder:
        scenes, bundle = Path(folder) / "scenes", Path(folder) / "bundle"
        seeds = range(HELD_OUT_SEEDS_FROM, HELD_OUT_SEEDS_FROM + options.scenes)
        write_labelled_set(scenes, seeds=seeds, ignore_below_px=32)
        outcome = build(builtin_recipe(calibration, bundle), host, report)
        print("\n".join(outcome.footer()))
        accuracy = _accuracy(scenes, outcome.folder, host, report)
        ratio = _ratio(outcome.folder, host, report, calibration, options.rounds)
    loss = 100 * (accuracy["float"] - accuracy["bundle"]) / accuracy["float"]
    report.table(
        f"{options.scenes} held-out scenes",
        [
            {"measure": "mAP50-95 float", "value": f"{accuracy['float']:.4f}"},
            {"measure": "mAP50-95 bundle", "value": f"{accuracy['bundle']:.4f}"},
            {"measure": "relative loss", "value": f"{loss:.2f} %"},
            {"measure": "onnxruntime FP32 / bundle, one thread, paired", "value": ratio},
            {"measure": "gate", "value": "accepted" if outcome.verdict.accepted else "refused"},
        ],
    )


def _accuracy(scenes: Path, bundle: Path, host: PluginHost, report: Terminal) -> dict[str, float]:
    pictures = open_set(scenes, report)
    truth = load_labels(scenes / "labels.json", class_map={}, class_names=CLASS_NAMES)
    found = {}
    for name, path in (("float", builtin_detector_path()), ("bundle", bundle)):
        detector = open_subject(path, pictures, ModelFlags(), host, report)
        found[name] = accuracy_on(truth, pictures, detections_of(detector, pictures, report, name)).map
    return found


def _ratio(bundle_path: Path, host: PluginHost, report: Terminal, pictures: Path, rounds: int) -> str:
    bundle = open_bundle(bundle_path, allow_unaccepted=True)
    request, analysis = analyse_for_command(builtin_detector_path(), open_set(pictures), host, report)
    sessions = {
        "float": request.reference.open(analysis.model.proto.SerializeToString(), SessionOptions()),
        "bundle": open_session(bundle, host.running_engines(), threads=1),
    }
    tensor = bundle.arrays(GOLDEN)["input_0"]
    runs = {name: (lambda session=session: session.infer(tensor)) for name, session in sessions.items()}
    samples = paired_latency(runs, rounds=rounds)
    median, low, high = ratio_interval(samples["float"], samples["bundle"])
    times = f"{samples['float'].p50_ms:.2f} / {samples['bundle'].p50_ms:.2f} ms"
    return f"{median:.2f} [{low:.2f}, {high:.2f}] ({times})"


if __name__ == "__main__":
    main()
