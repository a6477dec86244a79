"""Labelled sets are standard COCO, indexed by digest, and the packaged one is intact."""

from __future__ import annotations

import csv
import hashlib
import json
import pathlib

import cv2
import numpy as np
import pytest

from avq.errors import RequestError
from avq.scenes import CLASS_NAMES, random_scene
from avq.scenes.dataset import (
    CALIBRATION_SCENES,
    CALIBRATION_SEED,
    HELD_OUT_SCENES,
    HELD_OUT_SEED,
    IGNORE_BELOW_PX,
    INDEX_COLUMNS,
    TRAINING_SEED,
    write_labelled_set,
)

PACKAGED = pathlib.Path(__file__).parents[2] / "calibration_data" / "road_scenes"


def index_rows(folder: pathlib.Path) -> list[dict[str, str]]:
    with (folder / "index.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_set_is_complete_and_its_labels_are_those_of_the_scenes(tmp_path: pathlib.Path) -> None:
    assert write_labelled_set(tmp_path, seeds=range(30, 34), ignore_below_px=32, picture_format="png") == 4
    labels = json.loads((tmp_path / "labels.json").read_text(encoding="utf-8"))
    assert [c["name"] for c in labels["categories"]] == list(CLASS_NAMES)
    assert [c["id"] for c in labels["categories"]] == [1, 2, 3, 4, 5]
    for seed, image in zip(range(30, 34), labels["images"], strict=True):
        scene = random_scene(seed)
        assert np.array_equal(np.asarray(cv2.imread(str(tmp_path / image["file_name"]))), scene.pixels)
        mine = [a for a in labels["annotations"] if a["image_id"] == image["id"]]
        boxes = np.array([a["bbox"] for a in mine]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        assert np.abs(boxes - scene.boxes_xyxy_px).max(initial=0) < 0.02
        assert [a["category_id"] - 1 for a in mine] == scene.class_ids.tolist()
        for row in mine:
            assert row["area"] == pytest.approx(row["bbox"][2] * row["bbox"][3], abs=0.01)
            assert row["iscrowd"] == row["ignore"] == int(row["bbox"][3] < 32)
    assert len({a["id"] for a in labels["annotations"]}) == len(labels["annotations"])


def test_nothing_is_ignored_unless_asked(tmp_path: pathlib.Path) -> None:
    write_labelled_set(tmp_path, seeds=[1, 2])
    labels = json.loads((tmp_path / "labels.json").read_text(encoding="utf-8"))
    assert not any(a["iscrowd"] or a["ignore"] for a in labels["annotations"])


def test_an_unknown_format_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RequestError):
        write_labelled_set(tmp_path, seeds=[1], picture_format="bmp")


def test_the_packaged_set_is_intact_and_small() -> None:
    rows = index_rows(PACKAGED)
    assert len(rows) == CALIBRATION_SCENES
    assert tuple(rows[0]) == INDEX_COLUMNS
    for row in rows:
        assert hashlib.sha256((PACKAGED / row["file"]).read_bytes()).hexdigest() == row["sha256"]
    assert sum(path.stat().st_size for path in PACKAGED.iterdir()) < 4_000_000


@pytest.mark.slow
def test_the_packaged_labels_are_what_the_command_writes(tmp_path: pathlib.Path) -> None:
    seeds = range(CALIBRATION_SEED, CALIBRATION_SEED + CALIBRATION_SCENES)
    write_labelled_set(tmp_path, seeds=seeds, ignore_below_px=IGNORE_BELOW_PX)
    assert (tmp_path / "labels.json").read_bytes() == (PACKAGED / "labels.json").read_bytes()


def test_calibration_held_out_and_training_seeds_are_disjoint() -> None:
    assert HELD_OUT_SEED + HELD_OUT_SCENES <= CALIBRATION_SEED
    assert CALIBRATION_SEED + CALIBRATION_SCENES <= TRAINING_SEED
