"""Write labelled scenes to a folder: pictures, an index with digests, and COCO labels."""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import pathlib
from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np

from avq.atomic_file import atomic_write, atomic_write_path, refuse_special
from avq.errors import DataError, RequestError, nearest
from avq.scenes.drive import random_scene
from avq.scenes.labels import CLASS_NAMES, WEATHERS, LabelledScene

JPEG_QUALITY = 90
INDEX_COLUMNS = ("file", "sha256", "scene", "source", "licence")
FORMATS = ("jpg", "png")
LICENCE = "CC0-1.0"


def write_labelled_set(
    folder: pathlib.Path,
    *,
    seeds: Iterable[int],
    weather: str = "mixed",
    width_px: int = 640,
    height_px: int = 360,
    ignore_below_px: float = 0.0,
    picture_format: str = "jpg",
    prefix: str = "scene",
) -> int:
    """Writes one ``random_scene`` per seed, ``index.csv`` and ``labels.json``; returns how many scenes.

    Args:
        folder: made if it is missing; files of the same names are replaced.
        seeds: one scene each; they also name the files.
        ignore_below_px: boxes less tall than this, in picture pixels, get ``iscrowd`` and ``ignore`` 1, so that a
            COCO evaluation counts them neither as missed nor, when found, as wrong. 0 marks none.
        picture_format: "jpg" (quality 90) or "png" (exact pixels).
    """
    if picture_format not in FORMATS:
        raise RequestError(
            "unknown picture format", seen=repr(picture_format), fix=nearest(picture_format, FORMATS)
        )
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, str, str, str, str]] = []
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, seed in enumerate(seeds, start=1):
        scene = random_scene(seed, weather, width_px, height_px)
        name = f"{prefix}_{seed:06d}.{picture_format}"
        digest = _write_picture(folder / name, scene)
        rows.append(
            (name, digest, f"random_scene(seed={seed}, weather={weather})", "avq.scenes (rendered)", LICENCE)
        )
        images.append({"id": image_id, "file_name": name, "width": width_px, "height": height_px})
        annotations += _annotations(scene, image_id, len(annotations) + 1, ignore_below_px)
    _write_index(folder / "index.csv", rows)
    _write_labels(folder / "labels.json", images, annotations)
    return len(rows)


def _write_picture(path: pathlib.Path, scene: LabelledScene) -> str:
    """Writes the picture; returns the SHA-256 of the file."""
    settings = (
        [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
        if path.suffix == ".jpg"
        else []
    )
    done, encoded = cv2.imencode(path.suffix, scene.pixels, settings)
    if not done:
        raise DataError("a picture could not be encoded", seen=str(path), fix="use picture_format='png'")
    data = np.asarray(encoded).tobytes()
    refuse_special(path)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _annotations(
    scene: LabelledScene, image_id: int, first_id: int, ignore_below_px: float
) -> list[dict[str, Any]]:
    """COCO annotations; a box is x, y, width, height in pixels, rounded to hundredths."""
    made: list[dict[str, Any]] = []
    for (x0, y0, x1, y1), class_id in zip(
        scene.boxes_xyxy_px.tolist(), scene.class_ids.tolist(), strict=True
    ):
        box = [round(x0, 2), round(y0, 2), round(x1 - x0, 2), round(y1 - y0, 2)]
        ignored = int(y1 - y0 < ignore_below_px)
        made.append(
            {
                "id": first_id + len(made),
                "image_id": image_id,
                "category_id": class_id + 1,
                "bbox": box,
                "area": round(box[2] * box[3], 2),
                "iscrowd": ignored,
                "ignore": ignored,
            }
        )
    return made


def _write_index(path: pathlib.Path, rows: list[tuple[str, str, str, str, str]]) -> None:
    with atomic_write_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(INDEX_COLUMNS)
        writer.writerows(rows)


def _write_labels(
    path: pathlib.Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]]
) -> None:
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASS_NAMES, start=1)]
    text = json.dumps(
        {"images": images, "annotations": annotations, "categories": categories}, separators=(",", ":")
    )
    atomic_write(path, text + "\n")


# ``python -m avq.scenes.dataset -o DIR``: the built-in set, or any other labelled set of
# scenes.

# Disjoint ranges of scene seeds: held out from the training, calibration, training.
HELD_OUT_SEED = 10_000
HELD_OUT_SCENES = 500
CALIBRATION_SEED = 20_000
CALIBRATION_SCENES = 64
TRAINING_SEED = 1_000_000
# 16 px in the detector's 320x192 input.
IGNORE_BELOW_PX = 32.0


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m avq.scenes.dataset", description="Write labelled scenes."
    )
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, help="the folder to write")
    parser.add_argument("--start-seed", type=int, default=CALIBRATION_SEED)
    parser.add_argument("--scenes", type=int, default=CALIBRATION_SCENES)
    parser.add_argument("--weather", choices=WEATHERS, default="mixed")
    parser.add_argument("--format", choices=FORMATS, default="jpg")
    parser.add_argument("--ignore-below-px", type=float, default=IGNORE_BELOW_PX, help="in picture pixels")
    arguments = parser.parse_args()
    seeds = range(arguments.start_seed, arguments.start_seed + arguments.scenes)
    written = write_labelled_set(
        arguments.output,
        seeds=seeds,
        weather=arguments.weather,
        ignore_below_px=arguments.ignore_below_px,
        picture_format=arguments.format,
    )
    print(f"{written} scenes in {arguments.output}")


if __name__ == "__main__":
    main()
