"""NanoDet-m with no flag at all finds as much on the street as a literal reference decode does.

The reference shares nothing with avq: the original file in onnxruntime, float preprocessing, loops over its formula.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
from faster_coco_eval import COCO, COCOeval_faster

from avq.builder.frontend.analyse import analyse_file
from avq.builder.graph.model import FloatModel
from avq.decoders import DetectionDecoder
from avq.preprocess import Preprocessor

SCORE, IOU = 0.01, 0.65
Box = tuple[list[float], float, int]  # x0 y0 x1 y1, score, COCO class
LABEL_OF = {0: "person", 2: "vehicle", 5: "vehicle", 7: "vehicle"}


def session_of(model: bytes | str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def infer(model: FloatModel) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    session = session_of(model.proto.SerializeToString())
    names = [o.name for o in session.get_outputs()]
    return lambda tensor: dict(
        zip(names, session.run(None, {model.view.inputs[0].name: tensor}), strict=True)
    )


def suppress(found: list[Box]) -> list[Box]:
    """Greedy NMS within each class."""
    kept: list[Box] = []
    for label in {k for _, _, k in found}:
        boxes = np.array([b for b, _, k in found if k == label])
        scores = np.array([s for _, s, k in found if k == label])
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        left = np.argsort(-scores, kind="stable")
        while len(left):
            first, left = left[0], left[1:]
            kept.append((boxes[first].tolist(), float(scores[first]), label))
            low = np.maximum(boxes[first, :2], boxes[left, :2])
            high = np.minimum(boxes[first, 2:], boxes[left, 2:])
            sides = np.maximum(high - low, 0)
            shared = sides[:, 0] * sides[:, 1]
            left = left[shared <= IOU * (areas[first] + areas[left] - shared)]
    return sorted(kept, key=lambda one: -one[1])[:300]


def reference_nanodet(path: Path) -> Callable[[np.ndarray], list[Box]]:
    session = session_of(str(path))
    mean, std = np.array([103.53, 116.28, 123.675]), np.array([57.375, 57.12, 58.395])

    def detect(pixels: np.ndarray) -> list[Box]:
        height, width = pixels.shape[:2]
        ratio = min(320 / width, 320 / height)
        w, h = round(width * ratio), round(height * ratio)
        left, top = (320 - w) // 2, (320 - h) // 2
        canvas = np.zeros((320, 320, 3))
        canvas[top : top + h, left : left + w] = cv2.resize(pixels, (w, h))
        tensor = ((canvas - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)
        outputs = session.run(None, {"input.1": tensor})
        found: list[Box] = []
        for scores, sides, stride in zip(outputs[:3], outputs[3:], (8, 16, 32), strict=True):
            labels, tops = scores[0].argmax(axis=1), scores[0].max(axis=1)
            rows = np.flatnonzero((tops >= SCORE) & np.isin(labels, list(LABEL_OF)))
            bins = np.exp(sides[0, rows].reshape(-1, 4, 8).astype(np.float64))
            ltrb = (bins / bins.sum(axis=2, keepdims=True) * np.arange(8)).sum(axis=2) * stride
            for row, side in zip(rows.tolist(), ltrb.tolist(), strict=True):
                gy, gx = divmod(row, 320 // stride)
                x, y = gx * stride + 0.5 * (stride - 1), gy * stride + 0.5 * (stride - 1)
                corners = [x - side[0] - left, y - side[1] - top, x + side[2] - left, y + side[3] - top]
                box = [c * k for c, k in zip(corners, [width / w, height / h] * 2, strict=True)]
                box = [min(max(c, 0.0), edge) for c, edge in zip(box, [width, height] * 2, strict=True)]
                found.append((box, float(tops[row]), int(labels[row])))
        return suppress(found)

    return detect


def without_flags(path: Path, samples: list[np.ndarray]) -> Callable[[np.ndarray], list[Box]]:
    """The path every command takes: analyse the file, prepare, infer, decode."""
    found = analyse_file(
        path, decoder=None, preprocess=None, classes=None, sample_pixels=lambda: samples, infer=infer
    )
    run, prepare, decoder = infer(found.model), Preprocessor(found.spec), DetectionDecoder(found.decoder)

    def detect(pixels: np.ndarray) -> list[Box]:
        given = prepare.prepare(pixels)
        seen = decoder.decode(run(given.tensor), given, score_threshold=SCORE)
        return list(
            zip(seen.boxes_xyxy_px.tolist(), seen.scores.tolist(), seen.class_ids.tolist(), strict=True)
        )

    return detect


def pictures(street: Path, labels: dict[str, Any]) -> Iterator[tuple[int, np.ndarray]]:
    for image in labels["images"]:
        pixels = cv2.imread(str(street / "images" / image["file_name"]))
        assert pixels is not None
        yield image["id"], pixels


def mean_ap(labels: dict[str, Any], found: list[tuple[int, list[Box]]]) -> tuple[float, float]:
    """COCO mAP50-95 and AP50 over person and vehicle."""
    ids = {c["name"]: c["id"] for c in labels["categories"]}
    kept = [ids["person"], ids["vehicle"]]
    truth = COCO(
        {
            "images": labels["images"],
            "annotations": [a for a in labels["annotations"] if a["category_id"] in kept],
            "categories": [c for c in labels["categories"] if c["id"] in kept],
        }
    )
    rows = [
        {
            "image_id": image,
            "category_id": ids[LABEL_OF[k]],
            "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]],
            "score": s,
        }
        for image, boxes in found
        for b, s, k in boxes
        if k in LABEL_OF
    ]
    judge = COCOeval_faster(truth, truth.loadRes(rows), "bbox", print_function=lambda *_: None)
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return float(judge.stats[0]), float(judge.stats[1])


@pytest.fixture(scope="module")
def street(material: Path) -> tuple[Path, dict[str, Any]]:
    folder = material / "street"
    return folder, json.loads((folder / "labels.json").read_text())


@pytest.mark.xfail(strict=False, reason="on these pictures the search stops and lists the candidates")
@pytest.mark.material
@pytest.mark.slow
def test_nanodet_without_flags_is_as_good_as_its_reference_decode(
    material: Path, street: tuple[Path, dict[str, Any]]
) -> None:
    folder, labels = street
    path = material / "models" / "nanodet_m_320.onnx"
    samples = [pixels for _, (_, pixels) in zip(range(16), pictures(folder, labels), strict=False)]
    ours, reference = without_flags(path, samples), reference_nanodet(path)
    both = [(image, ours(pixels), reference(pixels)) for image, pixels in pictures(folder, labels)]
    assert len(both) == 230
    got = mean_ap(labels, [(image, boxes) for image, boxes, _ in both])
    want = mean_ap(labels, [(image, boxes) for image, _, boxes in both])
    print(
        f"NanoDet-m on street: mAP {got[0]:.4f} (reference {want[0]:.4f}), AP50 {got[1]:.4f} ({want[1]:.4f})"
    )
    assert want[0] > 0.25, "the reference itself must find the street"
    assert got == pytest.approx(want, abs=0.005)


@pytest.mark.material
@pytest.mark.slow
def test_yolox_nano_without_flags_reaches_its_known_accuracy(
    material: Path, street: tuple[Path, dict[str, Any]]
) -> None:
    folder, labels = street
    path = material / "models" / "yolox_nano_416.onnx"
    samples = [pixels for _, (_, pixels) in zip(range(4), pictures(folder, labels), strict=False)]
    ours = without_flags(path, samples)
    got = mean_ap(labels, [(image, ours(pixels)) for image, pixels in pictures(folder, labels)])
    print(f"YOLOX-Nano on street: mAP {got[0]:.4f}, AP50 {got[1]:.4f}")
    assert got == pytest.approx((0.3208, 0.6884), abs=0.005)
