"""mAP on real pictures and labels, and what happens with labels that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from avq.config import parse_class_map
from avq.errors import DataError, RequestError
from avq.measure.accuracy import evaluate
from avq.measure.labels import Labels, load_labels
from avq.types import Detections

NAMES = ["person", "car", "traffic light"]


def coco(**changes: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 100, "height": 80},
            {"id": 8, "file_name": "b.jpg", "width": 100, "height": 80},
        ],
        "categories": [{"id": 1, "name": "Person"}, {"id": 2, "name": "vehicle"}, {"id": 5, "name": "tram"}],
        "annotations": [
            {"id": 0, "image_id": 7, "category_id": 1, "bbox": [10, 10, 20, 30], "iscrowd": 0},
            {"id": 1, "image_id": 7, "category_id": 2, "bbox": [50, 10, 20, 10], "iscrowd": 0},
            {"id": 2, "image_id": 8, "category_id": 5, "bbox": [0, 0, 9, 9], "iscrowd": 0},
        ],
    }
    return raw | changes


def read(tmp_path: Path, raw: Any, mapping: dict[str, tuple[str, ...]] | None = None) -> Labels:
    file = tmp_path / "labels.json"
    file.write_text(raw if isinstance(raw, str) else json.dumps(raw))
    return load_labels(file, class_map=mapping or {}, class_names=NAMES)


def seen(*rows: tuple[int, float, list[float]]) -> Detections:
    return Detections(
        np.array([box for _, _, box in rows], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in rows], np.float32),
        np.array([cls for cls, _, _ in rows], np.int64),
    )


def test_categories_match_by_name_and_the_rest_is_named(tmp_path: Path) -> None:
    labels = read(tmp_path, coco())
    assert labels.categories == ("Person",)
    assert labels.skipped == ("vehicle", "tram")
    (told,) = labels.messages
    assert "vehicle, tram" in told and "2 boxes" in told


def test_names_differ_in_case_and_separators_only(tmp_path: Path) -> None:
    raw = coco(categories=[{"id": i, "name": n} for i, n in [(1, "TRAFFIC_LIGHT"), (2, "x"), (5, "y")]])
    assert read(tmp_path, raw).class_to_category == {2: 0}


def test_several_classes_may_stand_for_one_category(tmp_path: Path) -> None:
    labels = read(tmp_path, coco(), parse_class_map(["vehicle=car,traffic light"]))
    assert labels.categories == ("Person", "vehicle")
    assert labels.class_to_category == {0: 0, 1: 1, 2: 1}


def test_perfect_boxes_score_one_and_foreign_classes_do_not_count(tmp_path: Path) -> None:
    labels = read(tmp_path, coco(), {"vehicle": ("car",)})
    perfect = seen((0, 0.9, [10, 10, 30, 40]), (1, 0.8, [50, 10, 70, 20]), (2, 0.99, [0, 0, 50, 50]))
    result = evaluate(labels, {7: perfect, 8: Detections.none()})
    assert result.map == pytest.approx(1.0) and result.ap50 == pytest.approx(1.0)
    assert result.per_class == pytest.approx({"Person": 1.0, "vehicle": 1.0})
    assert result.images == 2 and result.skipped == ("tram",)


def test_a_missed_category_halves_the_mean(tmp_path: Path) -> None:
    labels = read(tmp_path, coco(), {"vehicle": ("car",)})
    result = evaluate(labels, {7: seen((0, 0.9, [10, 10, 30, 40]))})
    assert result.map == pytest.approx(0.5) and result.per_class["vehicle"] == 0.0


def test_no_detections_at_all_score_zero(tmp_path: Path) -> None:
    assert evaluate(read(tmp_path, coco()), {7: Detections.none()}).map == 0.0


@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
def test_ignored_boxes_are_neither_hit_nor_miss(tmp_path: Path, key: str) -> None:
    raw = coco()
    raw["annotations"].append({"id": 9, "image_id": 8, "category_id": 1, "bbox": [0, 0, 50, 50], key: 1})
    labels = read(tmp_path, raw)
    covered = seen((0, 0.95, [2, 2, 48, 48]))
    for detections in (Detections.none(), covered):
        found = {7: seen((0, 0.9, [10, 10, 30, 40])), 8: detections}
        assert evaluate(labels, found).map == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ('{"images": [', "not JSON"),
        ("[]", "at the top"),
        ({"images": [], "categories": []}, "'annotations' is missing"),
        (coco(images=[{"id": "7", "file_name": "a.jpg"}]), "expected an integer"),
        (coco(images=[]), "image_id=7"),
        (coco(annotations=[{"image_id": 7, "category_id": 44, "bbox": [0, 0, 1, 1]}]), "category_id=44"),
        (coco(annotations=[{"image_id": 7, "category_id": 1, "bbox": [0, 0, float("nan"), 1]}]), "bbox"),
        (coco(annotations=[{"image_id": 7, "category_id": 1}]), "annotations[0] has bbox=None"),
    ],
)
def test_broken_label_files_say_where(tmp_path: Path, raw: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, raw)
    assert message in str(caught.value) and "labels.json" in str(caught.value)


def test_unknown_names_in_the_map_get_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="did you mean 'vehicle'"):
        read(tmp_path, coco(), {"vehicel": ("car",)})
    with pytest.raises(RequestError, match="did you mean 'car'"):
        read(tmp_path, coco(), {"vehicle": ("cars",)})


def test_nothing_in_common_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no label category"):
        read(tmp_path, coco(categories=[{"id": i, "name": f"thing {i}"} for i in (1, 2, 5)]))


def test_evaluating_nothing_is_refused(tmp_path: Path) -> None:
    labels = read(tmp_path, coco())
    with pytest.raises(DataError, match="no picture"):
        evaluate(labels, {})
    with pytest.raises(DataError, match="hold no box"):
        evaluate(labels, {8: Detections.none()})
    with pytest.raises(DataError, match="not in"):
        evaluate(labels, {99: Detections.none()})


def test_pictures_of_equal_name_are_told_apart_by_folder(tmp_path: Path) -> None:
    raw = coco()
    raw["images"][0]["file_name"], raw["images"][1]["file_name"] = "day/x.jpg", "night/x.jpg"
    labels = read(tmp_path, raw)
    night, other = tmp_path / "night" / "x.jpg", tmp_path / "dawn" / "x.jpg"
    assert labels.match([night, other]) == {night: 8}
    with pytest.raises(DataError, match="no picture has labels"):
        labels.match([tmp_path / "z.jpg"])


@pytest.mark.material
@pytest.mark.slow
def test_yolox_nano_on_street_pictures(material: Path) -> None:
    """The published way of decoding this model, written out here, gives the accuracy it is known to have."""
    ort = pytest.importorskip("onnxruntime")
    names = ["person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck"]
    names += [f"class {i}" for i in range(8, 80)]
    labels = load_labels(
        material / "street" / "labels.json",
        class_map=parse_class_map(["vehicle=car,bus,truck"]),
        class_names=names,
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        material / "models" / "yolox_nano_416.onnx", options, providers=["CPUExecutionProvider"]
    )
    pictures = labels.match(sorted((material / "street" / "images").iterdir()))
    found = {image_id: yolox(session, path) for path, image_id in pictures.items()}
    result = evaluate(labels, found)
    assert labels.skipped == ("cyclist",)
    assert result.images == 230
    assert result.map == pytest.approx(0.3208, abs=0.0005)
    assert result.ap50 == pytest.approx(0.6884, abs=0.0005)


def yolox(session: Any, path: Path) -> Detections:
    picture = np.asarray(cv2.imread(str(path)))
    ratio = 416 / max(picture.shape[:2])
    canvas = np.full((416, 416, 3), 114, np.uint8)
    small = cv2.resize(picture, (int(picture.shape[1] * ratio), int(picture.shape[0] * ratio)))
    canvas[: small.shape[0], : small.shape[1]] = small
    raw = session.run(None, {"images": canvas.transpose(2, 0, 1)[None].astype(np.float32)})[0][0]
    cells = [(x, y, s) for s in (8, 16, 32) for y in range(416 // s) for x in range(416 // s)]
    gx, gy, stride = np.array(cells, np.float32).T
    cx, cy = (raw[:, 0] + gx) * stride, (raw[:, 1] + gy) * stride
    w, h = np.exp(raw[:, 2]) * stride, np.exp(raw[:, 3]) * stride
    boxes = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 1) / ratio
    scores = raw[:, 4:5] * raw[:, 5:]
    cell, cls = np.nonzero(scores >= 0.01)
    score = scores[cell, cls]
    corners = boxes[cell]
    sized = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
    keep = cv2.dnn.NMSBoxesBatched(sized.tolist(), score.tolist(), cls.tolist(), 0.01, 0.65)
    order = np.asarray(keep, np.int64).ravel()
    return Detections(corners[order].astype(np.float32), score[order].astype(np.float32), cls[order])
