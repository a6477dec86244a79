"""COCO mean average precision, by faster-coco-eval (imported late: only measuring needs it)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from avq.compare import iou_matrix
from avq.errors import DataError, MachineError
from avq.measure.labels import Labels
from avq.types import F32, F64, I64, Accuracy, Detections

if TYPE_CHECKING:
    from avq.measure.labels import Labels


@dataclass(frozen=True, slots=True)
class Boxes:
    """Boxes of one picture for the COCO metric.

    Attributes:
        xyxy_px: (N, 4) float32, picture pixels.
        categories: (N,) int64.
        scores: (N,) float32; unused for truth.
        ignore: (N,) bool, truth only: neither hit nor miss.
    """

    xyxy_px: F32
    categories: I64
    scores: F32
    ignore: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class AveragePrecision:
    """mAP50-95, AP50 and AP50-95 per category that has truth; all in 0..1."""

    map: float
    ap50: float
    per_category: Mapping[int, float]


def evaluate(labels: Labels, detections_by_image: Mapping[int, Detections]) -> Accuracy:
    """COCO metrics over the pictures in ``detections_by_image`` (image id -> Detections).

    Labelled pictures that are not in it are left out, so a held-out part can be evaluated. Detections of
    classes no label category stands for are not scored. Give detections from a low score (0.01) on; the
    metric keeps the best 100 per picture and category.

    Raises:
        DataError: no picture, a picture without labels, or no box at all in the labels of these pictures.
        MachineError: faster-coco-eval is not installed.
    """
    truth, found = paired_boxes(labels, detections_by_image)
    result = average_precision(truth, found, range(len(labels.categories)))
    return Accuracy(
        map=result.map,
        ap50=result.ap50,
        per_class={labels.categories[c]: ap for c, ap in result.per_category.items()},
        images=len(truth),
        skipped=labels.skipped,
    )


def paired_boxes(
    labels: Labels, detections_by_image: Mapping[int, Detections]
) -> tuple[list[Boxes], list[Boxes]]:
    """(truth, found), picture by picture, both in label categories.

    Raises DataError for no pictures, or pictures the labels do not know.
    """
    _require_labelled(labels, detections_by_image)
    truth, found = [], []
    for image_id, detections in detections_by_image.items():
        image = labels.images[image_id]
        scores = np.ones(len(image.categories), np.float32)
        truth.append(Boxes(image.boxes_xyxy_px, image.categories, scores, image.ignore))
        found.append(_in_categories(detections, labels.class_to_category))
    return truth, found


def boxes_by_category(pictures: Sequence[Boxes], category: int) -> list[Boxes]:
    """Only the boxes of one category, picture by picture."""
    return [_only(boxes, boxes.categories == category) for boxes in pictures]


def _only(boxes: Boxes, keep: npt.NDArray[np.bool_]) -> Boxes:
    return Boxes(boxes.xyxy_px[keep], boxes.categories[keep], boxes.scores[keep], boxes.ignore[keep])


def average_precision(
    truth: Sequence[Boxes], found: Sequence[Boxes], categories: Iterable[int]
) -> AveragePrecision:
    """COCO AP of ``found`` against ``truth``, picture by picture; ``categories`` are the ids to score.

    Raises DataError when there is no truth to compare with: an mAP over nothing is no number.
    """
    ids = sorted(categories)
    if not any(np.any(~t.ignore & np.isin(t.categories, ids)) for t in truth):
        raise DataError(
            "there is no box to measure accuracy against",
            seen=f"{len(truth)} pictures, none with a labelled box of {len(ids)} categories",
            fix="give more pictures, or labels of categories the model has",
        )
    precision = _precision(truth, found, ids)
    per_category = {cid: _mean(precision[:, :, k]) for k, cid in enumerate(ids)}
    return AveragePrecision(
        map=_mean(precision),
        ap50=_mean(precision[0]),
        per_category={cid: ap for cid, ap in per_category.items() if ap >= 0.0},
    )


def _precision(truth: Sequence[Boxes], found: Sequence[Boxes], ids: Sequence[int]) -> F64:
    """(10 IoUs, 101 recalls, categories) precision over all areas at 100 detections; -1 without truth."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise MachineError(
            "accuracy cannot be measured here: faster-coco-eval is missing",
            seen=str(error),
            fix='pip install "avq[build]"',
        ) from None
    gold = COCO(
        {
            "images": [{"id": i + 1, "width": 1, "height": 1} for i in range(len(truth))],
            "categories": [{"id": cid + 1, "name": str(cid)} for cid in ids],
            "annotations": _rows(truth, with_scores=False),
        }
    )
    evaluation = COCOeval_faster(gold, gold.loadRes(_rows(found, with_scores=True)), "bbox")
    evaluation.params.catIds = [cid + 1 for cid in ids]
    evaluation.evaluate()
    evaluation.accumulate()
    table: F64 = np.asarray(evaluation.eval["precision"], np.float64)[:, :, :, 0, -1]
    return table


def _rows(pictures: Sequence[Boxes], *, with_scores: bool) -> list[dict[str, Any]]:
    """COCO annotation rows; ids start at 1 because the metric reads id 0 as "not matched"."""
    rows: list[dict[str, Any]] = []
    for picture, boxes in enumerate(pictures, start=1):
        corners = boxes.xyxy_px.astype(np.float64)
        sizes = corners[:, 2:] - corners[:, :2]
        for n in range(len(boxes.categories)):
            row: dict[str, Any] = {
                "id": len(rows) + 1,
                "image_id": picture,
                "category_id": int(boxes.categories[n]) + 1,
                "bbox": [*corners[n, :2].tolist(), *sizes[n].tolist()],
                "area": float(sizes[n].prod()),
                "iscrowd": int(boxes.ignore[n]),
            }
            if with_scores:
                row["score"] = float(boxes.scores[n])
            rows.append(row)
    return rows


def _mean(precision: F64) -> float:
    known = precision[precision > -1.0]
    return float(known.mean()) if known.size else -1.0


def _in_categories(detections: Detections, class_to_category: Mapping[int, int]) -> Boxes:
    """Detections with model classes replaced by label categories; others are dropped."""
    mapped = np.array([class_to_category.get(int(c), -1) for c in detections.class_ids], np.int64)
    keep = mapped >= 0
    return as_boxes(detections.boxes_xyxy_px[keep], mapped[keep], detections.scores[keep])


def as_boxes(xyxy_px: F32, categories: I64, scores: F32) -> Boxes:
    """Boxes none of which is ignored."""
    return Boxes(xyxy_px, categories, scores, np.zeros(len(categories), np.bool_))


def _require_labelled(labels: Labels, detections_by_image: Mapping[int, Detections]) -> None:
    if not detections_by_image:
        raise DataError("no picture was evaluated", fix="give at least one labelled picture")
    strange = [image_id for image_id in detections_by_image if image_id not in labels.images]
    if strange:
        raise DataError(
            f"{len(strange)} evaluated pictures are not in {labels.source}",
            seen=f"image ids such as {strange[0]}",
            fix="match pictures and labels with Labels.match",
        )


# Is a difference in mAP more than luck of the pictures? A paired bootstrap over images.

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
