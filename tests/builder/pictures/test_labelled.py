"""Labels that do not fit their pictures are reported."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from avq.builder.labelled import remarks
from avq.builder.pictures.dataset import open_set
from avq.measure.labels import load_labels


def remarks_on(folder: Path, *, width_px: int, box: list[float]) -> tuple[str, ...]:
    """Two pictures of 64x48, the first labelled as ``width_px`` wide with one box."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for shade, name in enumerate(("a.png", "b.png")):
        cv2.imwrite(str(pictures / name), np.full((48, 64, 3), shade, np.uint8))
    images = [
        {"id": 1, "file_name": "a.png", "width": width_px, "height": 48},
        {"id": 2, "file_name": "b.png"},
    ]
    row = {"image_id": 1, "category_id": 1, "bbox": box}
    file = folder / "labels.json"
    file.write_text(
        json.dumps({"images": images, "annotations": [row], "categories": [{"id": 1, "name": "car"}]})
    )
    return remarks(load_labels(file, class_map={}, class_names=("car",)), open_set(pictures).items)


def test_labels_that_fit_need_no_words(tmp_path: Path) -> None:
    assert remarks_on(tmp_path, width_px=64, box=[1, 1, 5, 5]) == ()


def test_labels_of_another_size_are_told_with_an_example(tmp_path: Path) -> None:
    (remark,) = remarks_on(tmp_path, width_px=32, box=[1, 1, 5, 5])
    assert "a.png is 64x48, labelled as 32x48" in remark and "1 of 1" in remark


def test_boxes_without_area_are_counted(tmp_path: Path) -> None:
    (remark,) = remarks_on(tmp_path, width_px=64, box=[9, 9, -5, 5])
    assert "boxes without area: 1" in remark
