"""Is a difference in mAP more than luck of the pictures? A paired bootstrap over images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from avq.compare import iou_matrix
from avq.errors import DataError
from avq.measure.accuracy import Boxes, boxes_by_category, paired_boxes
from avq.measure.labels import Labels
from avq.types import F32, F64, I64, Detections

Bools = npt.NDArray[np.bool_]

_IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)
_MAX_DETECTIONS = 100


@dataclass(frozen=True, slots=True)
class MapDifference:
    """mAP50-95 of ``b`` minus that of ``a``, with the interval in which it lies by chance of the pictures."""

    difference: float
    low: float
    high: float


def bootstrap_interval(
    labels: Labels,
    a: Mapping[int, Detections],
    b: Mapping[int, Detections],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> MapDifference:
    """Percentile bootstrap (Efron 1979) of the mAP difference, drawing images with replacement.

    Both models are scored on the same draw, so what makes a picture hard for both cancels. ``a`` and ``b`` map
    image ids to detections and must have the same keys. The same seed gives the same interval.

    Raises DataError for different or no pictures, or when no picture has a labelled box.
    """
    if set(a) != set(b):
        raise DataError(
            "the two runs saw different pictures",
            seen=f"{len(set(a) ^ set(b))} pictures are in one run only",
            fix="run both models on the same pictures",
        )
    tables = [_tables(labels, {image_id: run[image_id] for image_id in a}) for run in (a, b)]
    whole = np.ones(len(a))
    if not any(float(table.boxes.sum()) for table in tables[0]):
        raise DataError("there is no box to measure accuracy against", seen=f"{len(a)} pictures")
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(a), whole / len(a), size=resamples).astype(np.float64)
    found = np.array([_map(tables[1], w) - _map(tables[0], w) for w in draws])
    found = found[np.isfinite(found)]  # a draw may hold pictures without labels only
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(found, [tail, 100.0 - tail]) if len(found) else (np.nan, np.nan)
    return MapDifference(_map(tables[1], whole) - _map(tables[0], whole), float(low), float(high))


@dataclass(frozen=True, slots=True)
class _Matches:
    """All detections of one category, best score first, matched as COCO does.

    Attributes:
        image: (D,) position of the picture; hit, ignored: (10, D) per IoU threshold.
        boxes: (I,) labelled boxes per picture, ignored ones left out.
    """

    image: I64
    hit: Bools
    ignored: Bools
    boxes: F64


def _tables(labels: Labels, detections: Mapping[int, Detections]) -> list[_Matches]:
    truth, found = paired_boxes(labels, detections)
    return [
        _category(boxes_by_category(truth, c), boxes_by_category(found, c))
        for c in range(len(labels.categories))
    ]


def _category(truth: Sequence[Boxes], found: Sequence[Boxes]) -> _Matches:
    images, scores, hits, ignored = [], [], [], []
    for n, (gold, seen) in enumerate(zip(truth, found, strict=True)):
        order = np.argsort(-seen.scores, kind="stable")[:_MAX_DETECTIONS]
        hit, ignore = _match(gold, seen.xyxy_px[order])
        images.append(np.full(len(order), n, np.int64))
        scores.append(seen.scores[order])
        hits.append(hit)
        ignored.append(ignore)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return _Matches(
        np.concatenate(images)[order],
        np.concatenate(hits, axis=1)[:, order],
        np.concatenate(ignored, axis=1)[:, order],
        np.array([float(np.count_nonzero(~gold.ignore)) for gold in truth]),
    )


def _match(gold: Boxes, seen_xyxy: F32) -> tuple[Bools, Bools]:
    """Greedy by score, each box once; ignored boxes only where no other fits, and any number of times."""
    order = np.argsort(gold.ignore, kind="stable")
    overlap = _overlap(gold, seen_xyxy)[:, order]
    crowd = gold.ignore[order]
    hit = np.zeros((len(_IOU_THRESHOLDS), len(seen_xyxy)), bool)
    ignored = np.zeros_like(hit)
    for t, threshold in enumerate(_IOU_THRESHOLDS):
        free = np.ones(len(order), bool)
        for d in range(len(seen_xyxy)):
            place = _best(overlap[d], free & ~crowd, threshold)
            if place < 0:
                place = _best(overlap[d], crowd, threshold)
                ignored[t, d] = place >= 0
            else:
                free[place] = False
                hit[t, d] = True
    return hit, ignored


def _overlap(gold: Boxes, seen_xyxy: F32) -> F64:
    """(detections, truth) IoU; for ignored boxes the share of the detection that lies inside."""
    iou = iou_matrix(seen_xyxy, gold.xyxy_px)
    iou[:, gold.ignore] = _inside(seen_xyxy, gold.xyxy_px[gold.ignore])
    return iou


def _inside(seen_xyxy: F32, gold_xyxy: F32) -> F64:
    a, b = seen_xyxy.astype(np.float64)[:, None, :], gold_xyxy.astype(np.float64)[None, :, :]
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0.0, None)
    area = np.clip(a[..., 2:] - a[..., :2], 0.0, None).prod(axis=-1)
    share: F64 = np.divide(sides.prod(axis=-1), area, out=np.zeros(sides.shape[:2]), where=area > 0.0)
    return share


def _best(overlap: F64, allowed: Bools, threshold: float) -> int:
    """The last of the best allowed overlaps, as the COCO tool breaks ties; -1 below the threshold."""
    if not allowed.any():
        return -1
    values = np.where(allowed, overlap, -1.0)
    place = len(values) - 1 - int(np.argmax(values[::-1]))
    return place if values[place] >= min(threshold, 1.0 - 1e-10) else -1


def _map(tables: Sequence[_Matches], weights: F64) -> float:
    """mAP50-95 with each image counted ``weights`` times; categories without truth are left out."""
    per_category = [_ap(table, weights) for table in tables if float(weights @ table.boxes) > 0.0]
    return float(np.mean(per_category)) if per_category else float("nan")


def _ap(table: _Matches, weights: F64) -> float:
    weight = weights[table.image]
    counted = weight * ~table.ignored
    true = np.cumsum(counted * table.hit, axis=1)
    false = np.cumsum(counted * ~table.hit, axis=1)
    recall = true / float(weights @ table.boxes)
    precision = true / np.maximum(true + false, np.finfo(float).eps)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    padded = np.concatenate([envelope, np.zeros((len(envelope), 1))], axis=1)
    values = [row[np.searchsorted(r, _RECALLS, side="left")] for row, r in zip(padded, recall, strict=True)]
    return float(np.mean(values))
