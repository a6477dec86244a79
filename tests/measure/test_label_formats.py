"""The same labels as COCO, YOLO and Pascal VOC are equal, and every reader reports what it left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from avq.errors import DataError
from avq.measure.accuracy import evaluate
from avq.measure.label_formats import read_labels
from avq.measure.labels import Labels, load_labels
from avq.types import Detections

NAMES = ("car", "bus", "person")
Truth = dict[str, list[tuple[int, list[float]]]]  # file name -> (class id, x0, y0, x1, y1)
SIZE_PX = (96, 64)


@pytest.fixture(scope="module")
def truth() -> Truth:
    random = np.random.default_rng(3)
    labels: Truth = {}
    for number in range(24):
        boxes = []
        for _ in range(int(random.integers(0, 5))):
            corner, size = random.uniform(0, 30, 2), random.uniform(4, 30, 2)
            boxes.append((int(random.integers(len(NAMES))), [*corner.tolist(), *(corner + size).tolist()]))
        labels[f"{number:03}.png"] = boxes
    labels["000.png"] = []
    return labels


def write_pictures(folder: Path, truth: Truth) -> None:
    folder.mkdir(parents=True)
    for name in truth:
        assert cv2.imwrite(str(folder / name), np.zeros((SIZE_PX[1], SIZE_PX[0], 3), np.uint8))


def write_coco(file: Path, truth: Truth) -> Path:
    images = [
        {"id": i, "file_name": name, "width": SIZE_PX[0], "height": SIZE_PX[1]}
        for i, name in enumerate(truth)
    ]
    annotations = [
        {"id": 0, "image_id": i, "category_id": c + 7, "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]]}
        for i, boxes in enumerate(truth.values())
        for c, b in boxes
    ]
    categories = [{"id": i + 7, "name": name} for i, name in enumerate(NAMES)]
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def yolo_line(class_id: int, box: list[float]) -> str:
    (x0, y0, x1, y1), (w, h) = box, SIZE_PX
    return f"{class_id} {(x0 + x1) / 2 / w!r} {(y0 + y1) / 2 / h!r} {(x1 - x0) / w!r} {(y1 - y0) / h!r}"


def write_yolo(folder: Path, truth: Truth) -> None:
    """Write txt files; a picture without objects has none."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, boxes in truth.items():
        if boxes:
            lines = "\n".join(yolo_line(c, b) for c, b in boxes)
            (folder / name).with_suffix(".txt").write_text(lines + "\n")


def two_splits(root: Path, truth: Truth, names: str, paths: tuple[str, str]) -> Path:
    first = dict(list(truth.items())[::2])
    for split, part in (("train", first), ("val", {k: v for k, v in truth.items() if k not in first})):
        write_pictures(root / "images" / split, part)
        write_yolo(root / "labels" / split, part)
    file = root / "data.yaml"
    file.write_text(f"train: {paths[0]}\nval: {paths[1]}\nnames: {names}\n")
    return file


def yolo_ultralytics(root: Path, truth: Truth) -> Path:
    file = two_splits(root, truth, "{0: car, 1: bus, 2: person}", ("images/train", "images/val"))
    file.write_text(f"path: ../datasets/{root.name}\n" + file.read_text())
    return file


def yolo_roboflow(root: Path, truth: Truth) -> Path:
    write_pictures(root / "train" / "images", truth)
    write_yolo(root / "train" / "labels", truth)
    (root / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\nnc: 3\nnames: [car, bus, person]\n"
    )
    return root


def yolo_lists(root: Path, truth: Truth) -> Path:
    file = two_splits(root, truth, "[car, bus, person]", ("train.txt", "[val.txt]"))
    for split in ("train", "val"):
        pictures = sorted((root / "images" / split).iterdir())
        (root / f"{split}.txt").write_text("\n".join(f"./images/{split}/{p.name}" for p in pictures))
    return file


def yolo_flat(root: Path, truth: Truth) -> Path:
    write_pictures(root, truth)
    write_yolo(root, truth)
    (root / "classes.txt").write_text("car\nbus\nperson\n")
    return root


def voc_text(size_px: tuple[int, int], boxes: list[tuple[str, list[float]]], digits: int) -> str:
    keys = ("xmin", "ymin", "xmax", "ymax")
    objects = "".join(
        f"<object><name>{name}</name><bndbox>"
        + "".join(f"<{key}>{value:.{digits}f}</{key}>" for key, value in zip(keys, box, strict=True))
        + "</bndbox></object>"
        for name, box in boxes
    )
    return (
        f"<annotation><size><width>{size_px[0]}</width><height>{size_px[1]}</height></size>"
        f"{objects}</annotation>"
    )


def voc(root: Path, truth: Truth, *, size: bool = True) -> Path:
    write_pictures(root / "JPEGImages", truth)
    (root / "Annotations").mkdir()
    for name, boxes in truth.items():
        text = voc_text(SIZE_PX if size else (0, 0), [(NAMES[c], b) for c, b in boxes], 12)
        text = text.replace("<annotation>", f"<annotation><filename>other_{name}</filename>")
        (root / "Annotations" / name).with_suffix(".xml").write_text(text)
    return root


def by_name(labels: Labels) -> dict[str, tuple[Any, Any]]:
    table = {}
    for image in labels.images.values():
        names = [labels.categories[c] for c in image.categories]
        order = np.lexsort(image.boxes_xyxy_px.T)
        table[Path(image.file_name).name] = (image.boxes_xyxy_px[order], [names[i] for i in order])
    return table


WRITERS = (yolo_ultralytics, yolo_roboflow, yolo_lists, yolo_flat, voc)


@pytest.mark.parametrize("write", WRITERS)
def test_equals_coco(write: Callable[[Path, Truth], Path], truth: Truth, tmp_path: Path) -> None:
    coco = load_labels(write_coco(tmp_path / "l.json", truth), class_map={}, class_names=NAMES)
    other = load_labels(write(tmp_path / "set", truth), class_map={}, class_names=NAMES)
    expected, seen = by_name(coco), by_name(other)
    assert seen.keys() == expected.keys() == truth.keys()
    for name, (boxes, names) in expected.items():
        np.testing.assert_allclose(seen[name][0], boxes, atol=1e-4)
        assert seen[name][1] == names
    assert other.messages == ()


@pytest.mark.parametrize("write", [yolo_ultralytics, yolo_flat, voc])
def test_equal_map(write: Callable[[Path, Truth], Path], truth: Truth, tmp_path: Path) -> None:
    coco = load_labels(write_coco(tmp_path / "l.json", truth), class_map={}, class_names=NAMES)
    other = load_labels(write(tmp_path / "set", truth), class_map={}, class_names=NAMES)
    random = np.random.default_rng(5)
    shifted = {
        name: [(c, [v + float(random.normal(0, 1.5)) for v in b], random.random()) for c, b in boxes]
        for name, boxes in truth.items()
    }

    def score(labels: Labels) -> float:
        detections = {
            image.image_id: Detections(
                np.array([b for _, b, _ in shifted[Path(image.file_name).name]], np.float32).reshape(-1, 4),
                np.array([s for *_, s in shifted[Path(image.file_name).name]], np.float32),
                np.array([c for c, *_ in shifted[Path(image.file_name).name]], np.int64),
                camera="",
                seq=0,
                t_capture_ns=0,
            )
            for image in labels.images.values()
        }
        return evaluate(labels, detections).map

    assert 0.1 < score(coco) < 0.9
    assert score(other) == pytest.approx(score(coco), abs=1e-9)


def test_voc_sizes_come_from_the_pictures(truth: Truth, tmp_path: Path) -> None:
    labels = load_labels(voc(tmp_path / "set", truth, size=False), class_map={}, class_names=NAMES)
    assert {image.size_px for image in labels.images.values()} == {SIZE_PX}


def test_yolo_matches_numbered_classes(truth: Truth, tmp_path: Path) -> None:
    file = yolo_ultralytics(tmp_path / "set", truth)
    labels = load_labels(file, class_map={}, class_names=("class0", "class1", "class2", "class3"))
    assert labels.categories == NAMES
    assert labels.class_to_category == {0: 0, 1: 1, 2: 2}


BAD_LINES = {
    "2 0.5 0.5 x 0.1": "numbers",
    "9 0.5 0.5 0.1 0.1": "no name",
    "1.5 0.5 0.5 0.1 0.1": "no name",
    "1 0.5 0.5 0.1": "no box",
    "1 0.5 0.5 0 0.1": "no box",
    "1 50 40 10 10": "no box",
    "1 nan 0.5 0.1 0.1": "no box",
    "1 0.1 0.1 0.2 0.2 0.3 0.3 0.4": "no box",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_yolo_bad_line_is_reported(line: str, tmp_path: Path) -> None:
    root = yolo_flat(tmp_path / "set", {"a.png": [(0, [1.0, 2.0, 30.0, 40.0])]})
    file = root / "a.txt"
    file.write_text(f"{line}\n{file.read_text()}")
    labels = load_labels(root, class_map={}, class_names=NAMES)
    assert sum(len(image.categories) for image in labels.images.values()) == 1
    (message,) = labels.messages
    assert BAD_LINES[line] in message
    assert "a.txt line 1" in message


@pytest.mark.parametrize(
    ("line", "extra"),
    [
        ("1 0.1 0.2 0.5 0.2 0.5 0.6 0.1 0.6", ""),  # outline
        ("1 0.3 0.4 0.4 0.4 0.2 0.3 2", "kpt_shape: [1, 3]\n"),  # box and keypoint
        ("1 0.3 0.4 0.4 0.4 0.9", ""),  # box and score
    ],
)
def test_yolo_outlines_and_keypoints(line: str, extra: str, tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", {"a.png": []})
    write_yolo(tmp_path / "labels", {})
    (tmp_path / "labels" / "a.txt").write_text(line)
    (tmp_path / "data.yaml").write_text(f"train: images\nnames: [car, bus]\n{extra}")
    (image,) = load_labels(tmp_path, class_map={}, class_names=NAMES).images.values()
    w, h = SIZE_PX
    np.testing.assert_allclose(image.boxes_xyxy_px, [[0.1 * w, 0.2 * h, 0.5 * w, 0.6 * h]], atol=1e-4)


def test_voc_reports_what_it_left_out(tmp_path: Path) -> None:
    root = voc(
        tmp_path / "set", {"a.png": [(0, [1.0, 2.0, 30.0, 40.0])], "b.png": [(1, [1.0, 2.0, 9.0, 9.0])]}
    )
    notes = root / "Annotations"
    (notes / "c.xml").write_text("<annotation><object>")
    (notes / "d.xml").write_text("<kml/>")
    (notes / "e.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>')
    (notes / "f.xml").write_text("<annotation><object><name>car</name></object></annotation>")
    text = (notes / "b.xml").read_text().replace("</name>", "</name><difficult>1</difficult>")
    (notes / "b.xml").write_text(text)
    labels = load_labels(root, class_map={}, class_names=NAMES)
    assert [image.ignore.tolist() for image in labels.images.values()] == [[False], [True], []]
    for name in ("c.xml", "d.xml", "e.xml", "f.xml"):
        assert sum(name in message for message in labels.messages) == 1


def test_coco_outline_without_box(tmp_path: Path) -> None:
    file = write_coco(tmp_path / "l.json", {"a.png": [(0, [1.0, 2.0, 30.0, 40.0])]})
    raw = json.loads(file.read_text())
    raw["annotations"][0] = {"image_id": 0, "category_id": 7, "segmentation": [[1, 2, 30, 2, 30, 40]]}
    file.write_text(json.dumps(raw))
    labels = load_labels(file, class_map={}, class_names=NAMES)
    np.testing.assert_allclose(labels.images[0].boxes_xyxy_px, [[1, 2, 30, 40]])
    assert "outline" in labels.messages[0]


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ({}, "known format"),
        ({"readme.txt": "hello"}, "known format"),
        ({"data.yaml": "names: [car]\ntrain: nowhere"}, "no picture"),
        ({"data.yaml": "names: []\ntrain: ."}, "class names"),
        ({"data.yaml": "names: [a: b: c"}, "YAML"),
        ({"a.xml": "<broken"}, "Pascal VOC"),
    ],
)
def test_unusable_folders_are_refused(files: dict[str, str], word: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as error:
        read_labels(tmp_path)
    assert word in f"{error.value}"


def test_pictures_without_label_files_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", {"a.png": []})
    (tmp_path / "data.yaml").write_text("train: images\nnames: [car]\n")
    with pytest.raises(DataError) as error:
        read_labels(tmp_path / "data.yaml")
    assert "labels/a.txt" in error.value.seen


def test_a_missing_label_folder_and_yaml(tmp_path: Path) -> None:
    for name in ("no.json", "no.yaml", "no.xml"):
        with pytest.raises(DataError):
            read_labels(tmp_path / name)


@pytest.mark.material
def test_street_pictures_in_three_formats(material: Path, tmp_path: Path) -> None:
    """Full precision gives the same mAP; whole pixels change it by at most 0.002."""
    raw = json.loads((material / "street" / "labels.json").read_text())
    raw["annotations"] = [a for a in raw["annotations"] if not a.get("iscrowd") and not a.get("ignore")]
    names = {c["id"]: c["name"] for c in raw["categories"]}
    order = list(names)
    rows: dict[int, list[tuple[int, list[float]]]] = {image["id"]: [] for image in raw["images"]}
    for row in raw["annotations"]:
        x, y, w, h = row["bbox"]
        rows[row["image_id"]].append((order.index(row["category_id"]), [x, y, x + w, y + h]))
    for folder in ("yolo/labels", "voc", "whole"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "yolo" / "images").symlink_to(material / "street" / "images")
    (tmp_path / "coco.json").write_text(json.dumps(raw))
    for image in raw["images"]:
        (w, h), stem = (image["width"], image["height"]), Path(image["file_name"]).stem
        lines = [
            f"{c} {(b[0] + b[2]) / 2 / w!r} {(b[1] + b[3]) / 2 / h!r} {(b[2] - b[0]) / w!r} {(b[3] - b[1]) / h!r}"
            for c, b in rows[image["id"]]
        ]
        (tmp_path / "yolo" / "labels" / f"{stem}.txt").write_text("\n".join(lines))
        named = [(names[order[c]], b) for c, b in rows[image["id"]]]
        (tmp_path / "voc" / f"{stem}.xml").write_text(voc_text((w, h), named, 12))
        (tmp_path / "whole" / f"{stem}.xml").write_text(voc_text((w, h), named, 0))
    listed = ", ".join(f"{i}: {json.dumps(names[cid])}" for i, cid in enumerate(order))
    (tmp_path / "yolo" / "data.yaml").write_text(f"val: images\nnames: {{{listed}}}\n")

    random = np.random.default_rng(11)
    guessed = {
        Path(image["file_name"]).stem: Detections(
            np.array([b for _, b in rows[image["id"]]], np.float32).reshape(-1, 4)
            + random.normal(0, 3, (len(rows[image["id"]]), 4)).astype(np.float32),
            random.random(len(rows[image["id"]])).astype(np.float32),
            np.array([c for c, _ in rows[image["id"]]], np.int64),
        )
        for image in raw["images"]
    }

    def score(path: Path) -> float:
        labels = load_labels(path, class_map={}, class_names=tuple(names.values()))
        stems = {i.image_id: Path(i.file_name).stem for i in labels.images.values()}
        return evaluate(labels, {image_id: guessed[stem] for image_id, stem in stems.items()}).map

    coco = score(tmp_path / "coco.json")
    assert 0.1 < coco < 0.95
    assert score(tmp_path / "yolo") == pytest.approx(coco, abs=1e-6)
    assert score(tmp_path / "voc") == pytest.approx(coco, abs=1e-6)
    assert score(tmp_path / "whole") == pytest.approx(coco, abs=2e-3)
