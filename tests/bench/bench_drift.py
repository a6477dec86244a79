"""Does ``avq eval --drift`` tell new conditions from calibrated days, and before objects are missed?

    python tests/bench/bench_drift.py [--scenes 40] [--calibration 80] [--days 12]

The built-in detector is calibrated on day scenes alone, then asked about: other days (must not alarm), night, rain,
low sun, other cameras (colour cast, exposure, noise, mounted lower), fog, and a day that darkens step by step. Beside
the answer stands what the bundle's boxes lose on the same scenes: mAP50-95 and AP50 against their labels.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from avq.builder import build
from avq.builder.pictures.dataset import open_set
from avq.cli.terminal import Terminal
from avq.commands.evaluate import ModelFlags, accuracy_on, detections_of, drift, open_subject
from avq.demo import builtin_recipe
from avq.measure.labels import load_labels
from avq.plugins import PluginHost
from avq.progress import Silent
from avq.scenes import CLASS_NAMES
from avq.scenes.dataset import write_labelled_set
from avq.types import U8

Change = Callable[[U8, np.random.Generator], U8]
_FAR_SEED = 9_000_000
_LOWER_PX = 40


def gain(factor: float) -> Change:
    return lambda pixels, _: np.asarray(np.clip(pixels * factor, 0, 255), np.uint8)


def cast(pixels: U8, _: np.random.Generator) -> U8:
    return np.clip(pixels * np.array([0.7, 1.0, 1.25]), 0, 255).astype(np.uint8)


def noise(pixels: U8, rng: np.random.Generator) -> U8:
    return np.clip(pixels + rng.normal(0.0, 18.0, pixels.shape), 0, 255).astype(np.uint8)


def fog(pixels: U8, _: np.random.Generator) -> U8:
    return np.asarray(0.4 * pixels + 0.6 * 200, np.uint8)


def lower(pixels: U8, _: np.random.Generator) -> U8:
    """The picture of a camera that looks further down: everything moves up, the edge repeats."""
    moved = np.empty_like(pixels)
    moved[:-_LOWER_PX], moved[-_LOWER_PX:] = pixels[_LOWER_PX:], pixels[-1]
    return moved


CONDITIONS: dict[str, tuple[str, Change | None]] = {
    "night": ("night", None),
    "rain": ("rain", None),
    "low sun": ("glare", None),
    "fog": ("day", fog),
    "camera: colour cast": ("day", cast),
    "camera: exposure x1.7": ("day", gain(1.7)),
    "camera: noise 18": ("day", noise),
    "camera: 40 px lower": ("day", lower),
    **{f"dusk: light x{factor:g}": ("day", gain(factor)) for factor in (0.9, 0.8, 0.7, 0.6, 0.5, 0.35, 0.2)},
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--scenes", type=int, default=40)
    arguments.add_argument("--calibration", type=int, default=80)
    arguments.add_argument("--days", type=int, default=12, help="sets of other days, for false alarms")
    options = arguments.parse_args()
    report, host = Terminal(), PluginHost()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        days = write_set(folder / "calibration", range(options.calibration), "day", None)
        bundle = build(builtin_recipe(days, folder / "day.avq"), host, Silent()).folder
        rows = [_row("other day", bundle, write_set(folder / "day", _seeds(1, options), "day", None), host)]
        for number, (name, (weather, change)) in enumerate(CONDITIONS.items(), start=2):
            where = write_set(folder / f"set{number}", _seeds(number, options), weather, change)
            rows.append(_row(name, bundle, where, host))
        report.table(f"{options.scenes} scenes each, calibrated on {options.calibration} days", rows)
        alarms = [
            drift(subject=bundle, data=where, host=host, report=Silent())
            for n in range(options.days)
            for where in [write_set(folder / f"d{n}", _seeds(100 + n, options), "day", None)]
        ]
    beyond = sum(a["beyond"] for a in alarms) / max(1, sum(a["images"] for a in alarms))
    report.message(
        f"{options.days} further sets of days: {sum(a['drift'] for a in alarms)} alarms, "
        f"{100 * beyond:.1f} % of the pictures beyond the threshold"
    )


def write_set(folder: Path, seeds: range, weather: str, change: Change | None) -> Path:
    """Labelled scenes, each picture changed as a camera or the air would."""
    write_labelled_set(folder, seeds=seeds, weather=weather, ignore_below_px=32, picture_format="png")
    if change is not None:
        rng = np.random.default_rng(seeds.start)
        for path in sorted(folder.glob("*.png")):
            cv2.imwrite(str(path), change(np.asarray(cv2.imread(str(path)), np.uint8), rng))
        (folder / "index.csv").unlink()
        if change is lower:
            _move_labels_up(folder / "labels.json")
    return folder


def _move_labels_up(path: Path) -> None:
    labels = json.loads(path.read_text())
    for annotation in labels["annotations"]:
        x, y, width, height = annotation["bbox"]
        top = max(0.0, y - _LOWER_PX)
        bottom = max(top + 1.0, y + height - _LOWER_PX)
        annotation["bbox"] = [x, top, width, bottom - top]
        annotation["area"] = width * (bottom - top)
    path.write_text(json.dumps(labels))


def _seeds(number: int, options: argparse.Namespace) -> range:
    first = _FAR_SEED + 10_000 * number
    return range(first, first + int(options.scenes))


def _row(name: str, bundle: Path, folder: Path, host: PluginHost) -> dict[str, object]:
    answer = drift(subject=bundle, data=folder, host=host, report=Silent())
    pictures = open_set(folder)
    truth = load_labels(folder / "labels.json", class_map={}, class_names=CLASS_NAMES)
    detector = open_subject(bundle, pictures, ModelFlags(), host, Silent())
    accuracy = accuracy_on(truth, pictures, detections_of(detector, pictures, Silent(), name))
    return {
        "condition": name,
        "drift": answer["drift"],
        "beyond": f"{answer['beyond']} of {answer['images']} (limit {answer['limit']})",
        "score / threshold": f"{answer['score']:.2f} / {answer['threshold']:.2f}",
        "mAP50-95": round(accuracy.map, 3),
        "AP50": round(accuracy.ap50, 3),
    }


if __name__ == "__main__":
    main()
