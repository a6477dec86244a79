"""Mean average precision on held-out scenes, COCO style. Needs no torch: it evaluates the ONNX file."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avq.scenes.dataset import HELD_OUT_SCENES, HELD_OUT_SEED
from avq.scenes.drive import random_scene
from avq.scenes.labels import CLASS_NAMES
from avq.scenes.train.data import IGNORE_BELOW_PX, letterbox

# images (1,3,192,320) float32 0..1 -> boxes (N,4), scores (N,C)
Predict = Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], NDArray[np.float32]]]
SCORE_FLOOR = 0.01
NMS_IOU = 0.65
MOST_BOXES = 100


@dataclass(frozen=True)
class Accuracy:
    """Over the held-out scenes, boxes under 16 px of height at network size ignored."""

    map: float
    ap50: float
    per_class: dict[str, float]


def onnx_predictor(path: pathlib.Path, threads: int = 1) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def predict(images: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        boxes, scores = session.run(["boxes", "scores"], {"images": images})
        return boxes[0], scores[0]

    return predict


def suppress(boxes: NDArray[np.float32], scores: NDArray[np.float32]) -> NDArray[np.intp]:
    """Greedy non-maximum suppression of one class; kept indices, best first."""
    order = np.argsort(-scores, kind="stable")
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[rest, :2])
        high = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = np.clip(high - low, 0, None).prod(1)
        iou = shared / np.maximum(area[best] + area[rest] - shared, 1e-9)
        order = rest[iou <= NMS_IOU]
    return np.array(kept, np.intp)


def detect(
    predict: Predict, pixels: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """boxes (K,4) in picture pixels, scores (K,), class ids (K,), best first."""
    picture, scale = letterbox(pixels)
    images = np.ascontiguousarray(picture.transpose(2, 0, 1)[None], np.float32) / np.float32(255)
    boxes, scores = predict(images)
    height, width = pixels.shape[:2]
    boxes = np.clip(boxes / np.float32(scale), 0, np.array([width, height, width, height], np.float32))
    found: list[tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]] = []
    for class_id in range(scores.shape[1]):
        likely = np.argsort(-scores[:, class_id], kind="stable")[:MOST_BOXES]
        likely = likely[scores[likely, class_id] > SCORE_FLOOR]
        keep = likely[suppress(boxes[likely], scores[likely, class_id])]
        found.append((boxes[keep], scores[keep, class_id], np.full(len(keep), class_id, np.int64)))
    all_boxes, all_scores, all_classes = (np.concatenate(part) for part in zip(*found, strict=True))
    best = np.argsort(-all_scores, kind="stable")[:MOST_BOXES]
    return all_boxes[best], all_scores[best], all_classes[best]


def held_out_accuracy(predict: Predict, scenes: int = HELD_OUT_SCENES) -> Accuracy:
    """Accuracy on seeds ``HELD_OUT_SEED`` onwards, weather "mixed"."""
    truth: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASS_NAMES)],
    }
    results: list[dict[str, Any]] = []
    for number in range(scenes):
        scene = random_scene(HELD_OUT_SEED + number)
        height, width = scene.pixels.shape[:2]
        truth["images"].append({"id": number, "width": width, "height": height})
        scale = letterbox(scene.pixels)[1]
        for (x0, y0, x1, y1), class_id in zip(
            scene.boxes_xyxy_px.tolist(), scene.class_ids.tolist(), strict=True
        ):
            small = int((y1 - y0) * scale < IGNORE_BELOW_PX)
            box = [x0, y0, x1 - x0, y1 - y0]
            row = {
                "id": len(truth["annotations"]) + 1,
                "image_id": number,
                "category_id": class_id + 1,
                "bbox": box,
            }
            truth["annotations"].append({**row, "area": box[2] * box[3], "iscrowd": small, "ignore": small})
        boxes, scores, classes = detect(predict, scene.pixels)
        for (x0, y0, x1, y1), score, class_id in zip(
            boxes.tolist(), scores.tolist(), classes.tolist(), strict=True
        ):
            box = [x0, y0, x1 - x0, y1 - y0]
            results.append({"image_id": number, "category_id": class_id + 1, "bbox": box, "score": score})
    return _score(truth, results)


def _score(truth: dict[str, list[dict[str, Any]]], results: list[dict[str, Any]]) -> Accuracy:
    from faster_coco_eval import COCO, COCOeval_faster

    if not results:
        return Accuracy(0.0, 0.0, dict.fromkeys(CLASS_NAMES, 0.0))
    coco = COCO(truth)
    judge = COCOeval_faster(coco, coco.loadRes(results), "bbox", print_function=lambda *_: None)
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    # precision: IoU thresholds x recalls x classes x areas x most detections
    precision = judge.eval["precision"][:, :, :, 0, -1]
    per_class = {}
    for index, name in enumerate(CLASS_NAMES):
        values = precision[:, :, index]
        per_class[name] = float(values[values > -1].mean()) if (values > -1).any() else float("nan")
    return Accuracy(float(judge.stats[0]), float(judge.stats[1]), per_class)
