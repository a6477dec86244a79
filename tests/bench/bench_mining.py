"""Does mining close the loop: a bundle calibrated on the wrong pictures, mended with frames that a replay chose?

    python tests/bench/bench_mining.py [--scenes 150] [--exposure 0.35] [--target day] [--mined 24]

The built-in detector is calibrated (min-max) on night scenes of an underexposed camera, then driven by day. Frames
are mined from day drives by ``avq replay --mine`` and join the calibration set; nothing else changes. Both bundles
are judged on labelled day scenes that were neither calibrated on nor mined: the loss is the float model's mAP50-95
minus the bundle's, with the 95 % interval of a paired bootstrap over the scenes.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from avq.builder import build
from avq.builder.pictures.dataset import open_set
from avq.commands.evaluate import ModelFlags, detections_of, open_subject
from avq.demo import builtin_recipe
from avq.measure.accuracy import MapDifference, bootstrap_interval
from avq.measure.labels import load_labels
from avq.parallel import WorkerPool
from avq.plugins import PluginHost
from avq.progress import Silent
from avq.replay.mining import mine
from avq.scenes import builtin_detector_path
from avq.scenes.dataset import write_labelled_set
from avq.types import Detections

_CALIBRATED, _JUDGED, _DRIVEN = 9_100_000, 9_200_000, 9_300_000
_OPTIONS = {
    "calibrator": "minmax", "equalize": "off", "rounding": "nearest", "bias_correction": "off", "weights": "minmax",
    "depthwise": "int8",
}  # fmt: skip


def underexposed(folder: Path, scenes: int, exposure: float) -> Path:
    """Night scenes of a camera whose exposure is set too short, as a set with an index."""
    write_labelled_set(
        folder, seeds=range(_CALIBRATED, _CALIBRATED + scenes), weather="night", picture_format="png"
    )
    (folder / "labels.json").unlink()
    rows = list(csv.DictReader((folder / "index.csv").open(newline="")))
    for row in rows:
        path = folder / row["file"]
        cv2.imwrite(str(path), np.asarray(np.asarray(cv2.imread(str(path))) * exposure, np.uint8))
        row["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def together(folder: Path, *sets: Path) -> Path:
    """One set of several: files and rows side by side."""
    folder.mkdir()
    rows: list[dict[str, str]] = []
    for one in sets:
        for row in csv.DictReader((one / "index.csv").open(newline="")):
            shutil.copy(one / row["file"], folder / row["file"])
            rows.append(row)
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def built(data: Path, output: Path, host: PluginHost) -> Path:
    recipe = builtin_recipe(data, output)
    recipe = replace(recipe, strategy="static", options=_OPTIONS, labels=None, gate=False)
    build(recipe, host, Silent())
    return output


def seen_on(subject: Path, folder: Path, host: PluginHost) -> dict[int, Detections]:
    pictures = open_set(folder, copies=True)
    detector = open_subject(subject, pictures, ModelFlags(), host, Silent())
    truth = load_labels(folder / "labels.json", class_map={}, class_names=detector.class_names)
    ids = truth.match([item.path for item in pictures.items])
    found = detections_of(detector, pictures, Silent(), "")
    return {ids[i.path]: boxes for i, boxes in zip(pictures.items, found, strict=True) if i.path in ids}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=150)
    parser.add_argument("--calibration", type=int, default=48)
    parser.add_argument("--exposure", type=float, default=0.35)
    parser.add_argument("--target", default="day")
    parser.add_argument("--mined", type=int, default=24)
    asked = parser.parse_args()
    host = PluginHost()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        judged = root / "judged"
        write_labelled_set(
            judged, seeds=range(_JUDGED, _JUDGED + asked.scenes), weather=asked.target, ignore_below_px=16
        )
        dark = underexposed(root / "dark", asked.calibration, asked.exposure)
        before = built(dark, root / "before.avq", host)
        drives = [
            f"scene://drive?seed={_DRIVEN + n}&weather={asked.target}&frames=60&fps=10" for n in range(4)
        ]
        mined = mine(
            logs=drives, bundle=before, other=None, folder=root / "mined", count=asked.mined, licence="CC0-1.0",
            frames=None, pool=WorkerPool(), host=host, report=Silent(),
        )  # fmt: skip
        after = built(together(root / "both", dark, root / "mined"), root / "after.avq", host)
        reference = seen_on(builtin_detector_path(), judged, host)
        class_names = open_subject(before, open_set(judged), ModelFlags(), host, Silent()).class_names
        truth = load_labels(judged / "labels.json", class_map={}, class_names=class_names)
        losses = {}
        for name, bundle in (("before", before), ("after", after)):
            losses[name] = bootstrap_interval(truth, reference, seen_on(bundle, judged, host))
            print(f"| {name} | {_told(losses[name])} |", flush=True)
        lost, left = -losses["before"].difference, -losses["after"].difference
        width = losses["before"].high - losses["before"].low
        print(
            f"mined {mined.added} of {mined.frames} frames; loss {lost / width:.1f} times its interval;",
            end=" ",
        )
        print(f"after recalibration {left / lost:.0%} of it is left")


def _told(loss: MapDifference) -> str:
    return f"mAP {loss.difference:+.4f} [{loss.low:+.4f}, {loss.high:+.4f}]"


if __name__ == "__main__":
    main()
