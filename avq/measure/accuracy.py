"""COCO mean average precision with faster-coco-eval (imported on use), and a bootstrap of mAP differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from avq.compare import iou_matrix
from avq.errors import DataError, MachineError
from avq.measure.labels import Labels
from avq.measure.limits import MISSED, exact_limits, independent_boxes, picture_draws
from avq.types import F32, F64, I64, Accuracy, Detections, MapLoss
from avq.types.arrays import ArrayRecord

if TYPE_CHECKING:
    from avq.measure.labels import Labels


@dataclass(frozen=True, slots=True, eq=False)
class Boxes(ArrayRecord):
    """Boxes of one picture for the COCO metric.

    Attributes:
        xyxy_px: (N, 4) float32, picture pixels.
        categories: (N,) int64.
        scores: (N,) float32; unused for ground truth.
        ignore: (N,) bool, ground truth only: matches count neither as hit nor as miss.
    """

    xyxy_px: F32
    categories: I64
    scores: F32
    ignore: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        self._freeze("xyxy_px", "categories", "scores", "ignore")


@dataclass(frozen=True, slots=True)
class AveragePrecision:
    """mAP50-95, AP50, and AP50-95 per category with ground truth; all in 0..1."""

    map: float
    ap50: float
    per_category: Mapping[int, float]


def evaluate(labels: Labels, detections_by_image: Mapping[int, Detections]) -> Accuracy:
    """Compute COCO metrics over the pictures in ``detections_by_image``.

    Labelled pictures that are not in it are left out, so a held-out part can be evaluated. Detections of classes
    without a label category are not scored.

    Args:
        labels: ground truth.
        detections_by_image: image id -> detections, from a low score (0.01) on; the metric uses the best 100 per
            picture and category.

    Raises:
        DataError: there is no picture, a picture has no labels, or the labels of these pictures hold no box.
        MachineError: faster-coco-eval is not installed.
    """
    truth, detections = paired_boxes(labels, detections_by_image)
    result = average_precision(truth, detections, range(len(labels.categories)))
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
    """Return ground truth and detections, picture by picture, both in label categories.

    Raises:
        DataError: there are no pictures, or pictures without labels.
    """
    _require_labelled(labels, detections_by_image)
    truth, detected = [], []
    for image_id, detections in detections_by_image.items():
        image = labels.images[image_id]
        scores = np.ones(len(image.categories), np.float32)
        truth.append(Boxes(image.boxes_xyxy_px, image.categories, scores, image.ignore))
        detected.append(_in_categories(detections, labels.class_to_category))
    return truth, detected


def boxes_by_category(pictures: Sequence[Boxes], category: int) -> list[Boxes]:
    """Return the boxes of one category, picture by picture."""
    return [_only(boxes, boxes.categories == category) for boxes in pictures]


def _only(boxes: Boxes, keep: npt.NDArray[np.bool_]) -> Boxes:
    return Boxes(boxes.xyxy_px[keep], boxes.categories[keep], boxes.scores[keep], boxes.ignore[keep])


def average_precision(
    truth: Sequence[Boxes], detected: Sequence[Boxes], categories: Iterable[int]
) -> AveragePrecision:
    """Compute COCO average precision.

    Args:
        truth: ground truth, picture by picture.
        detected: detections, in the order of ``truth``.
        categories: ids to score.

    Raises:
        DataError: the ground truth holds no box of these categories: mAP is undefined.
        MachineError: faster-coco-eval is not installed.
    """
    ids = sorted(categories)
    if not any(np.any(~t.ignore & np.isin(t.categories, ids)) for t in truth):
        raise DataError(
            "accuracy cannot be computed: the labels hold no box of the model's classes",
            seen=f"{len(truth)} pictures, none with a labelled box of {len(ids)} categories",
            fix="use more pictures, or labels with categories of the model",
        )
    precision = _precision(truth, detected, ids)
    per_category = {cid: _mean(precision[:, :, k]) for k, cid in enumerate(ids)}
    return AveragePrecision(
        map=_mean(precision),
        ap50=_mean(precision[0]),
        per_category={cid: ap for cid, ap in per_category.items() if ap >= 0.0},
    )


def _precision(truth: Sequence[Boxes], detected: Sequence[Boxes], ids: Sequence[int]) -> F64:
    """Return (10 IoUs, 101 recalls, categories) precision over all areas at 100 detections; -1 without truth."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise MachineError(
            "accuracy needs faster-coco-eval, which is not installed",
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
    evaluation = COCOeval_faster(gold, gold.loadRes(_rows(detected, with_scores=True)), "bbox")
    evaluation.params.catIds = [cid + 1 for cid in ids]
    evaluation.evaluate()
    evaluation.accumulate()
    table: F64 = np.asarray(evaluation.eval["precision"], np.float64)[:, :, :, 0, -1]
    return table


def _rows(pictures: Sequence[Boxes], *, with_scores: bool) -> list[dict[str, Any]]:
    """Return COCO annotations; ids start at 1 because the metric reads id 0 as "not matched"."""
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
    """Replace model classes by label categories; detections of other classes are dropped."""
    mapped = np.array([class_to_category.get(int(c), -1) for c in detections.class_ids], np.int64)
    keep = mapped >= 0
    return as_boxes(detections.boxes_xyxy_px[keep], mapped[keep], detections.scores[keep])


def as_boxes(xyxy_px: F32, categories: I64, scores: F32) -> Boxes:
    """Return boxes none of which is ignored; shapes (N, 4), (N,) and (N,)."""
    return Boxes(xyxy_px, categories, scores, np.zeros(len(categories), np.bool_))


def _require_labelled(labels: Labels, detections_by_image: Mapping[int, Detections]) -> None:
    if not detections_by_image:
        raise DataError("no picture was evaluated", fix="give at least one labelled picture")
    unknown = [image_id for image_id in detections_by_image if image_id not in labels.images]
    if unknown:
        raise DataError(
            f"{len(unknown)} evaluated pictures are not in {labels.source}",
            seen=f"image ids such as {unknown[0]}",
            fix="match pictures and labels with Labels.match",
        )


# Paired bootstrap over images: whether a difference in mAP is more than chance.

Bools = npt.NDArray[np.bool_]

_IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)
_MAX_DETECTIONS = 100
_LOSS_DRAWS = 400


@dataclass(frozen=True, slots=True)
class MapDifference:
    """mAP50-95 of ``b`` minus mAP50-95 of ``a``, with its bootstrap interval."""

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
    """Bootstrap (percentile, Efron 1979) the mAP difference, drawing images with replacement.

    Both models are scored on the same draw, so the difficulty of a picture cancels.

    Args:
        labels: ground truth.
        a: image id -> detections of the first model.
        b: the same of the second model, with the same keys.
        resamples: number of draws.
        confidence: coverage of the interval.
        seed: the same seed gives the same interval.

    Raises:
        DataError: the pictures differ, there are none, or none has a labelled box.
    """
    if set(a) != set(b):
        raise DataError(
            "the two runs have different pictures",
            seen=f"{len(set(a) ^ set(b))} pictures are in one run only",
            fix="run both models on the same pictures",
        )
    tables = [_tables(labels, {image_id: run[image_id] for image_id in a}) for run in (a, b)]
    whole = np.ones(len(a))
    if not any(float(table.boxes.sum()) for table in tables[0]):
        raise DataError(
            "accuracy cannot be computed: the labels hold no box of the model's classes",
            seen=f"{len(a)} pictures",
        )
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(a), whole / len(a), size=resamples).astype(np.float64)
    differences = np.array([_map(tables[1], w) - _map(tables[0], w) for w in draws])
    differences = differences[np.isfinite(differences)]  # a draw may hold pictures without labels only
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(differences, [tail, 100.0 - tail]) if len(differences) else (np.nan, np.nan)
    return MapDifference(_map(tables[1], whole) - _map(tables[0], whole), float(low), float(high))


def relative_loss(
    labels: Labels,
    reference: Mapping[int, Detections],
    served: Mapping[int, Detections],
    *,
    missed: float = MISSED,
) -> MapLoss:
    """Compute the loss of mAP50-95 relative to ``reference``, with one-sided 95 % limits.

    The wider of a bootstrap over pictures and of the exact limits of a share of the labelled boxes: on few boxes
    equal detections prove little.

    Args:
        labels: ground truth.
        reference: image id -> detections of the float model.
        served: the same of the model under test, with the same keys.
        missed: share of cases in which the true loss is above the upper limit.
    """
    before, after = (_tables(labels, run) for run in (reference, served))
    counts = sum((table.boxes for table in before), np.zeros(len(reference)))
    whole, draws = np.ones(len(reference)), picture_draws(len(reference), _LOSS_DRAWS)
    value = _loss(before, after, whole)
    drawn = np.array([_loss(before, after, weights) for weights in draws])
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, [MISSED, 1.0 - missed]) if drawn.size else (-np.inf, np.inf)
    exact = exact_limits(max(value, 0.0), independent_boxes(counts), missed=missed)
    return MapLoss(
        100.0 * value,
        100.0 * min(float(low), exact.low),
        100.0 * max(float(high), exact.high),
        int(counts.sum()),
    )


def _loss(before: Sequence[_Matches], after: Sequence[_Matches], weights: F64) -> float:
    """Return 1 - mAP(after) / mAP(before); nan where ``before`` detects nothing."""
    of_float = _map(before, weights)
    return 1.0 - _map(after, weights) / of_float if of_float > 0.0 else float("nan")


@dataclass(frozen=True, slots=True)
class _Matches:
    """All detections of one category, best score first, matched as COCO does.

    Attributes:
        image: (D,) position of the picture.
        hit: (10, D) per IoU threshold.
        ignored: (10, D) per IoU threshold.
        boxes: (I,) labelled boxes per picture, ignored ones left out.
    """

    image: I64
    hit: Bools
    ignored: Bools
    boxes: F64


def _tables(labels: Labels, detections: Mapping[int, Detections]) -> list[_Matches]:
    truth, detected = paired_boxes(labels, detections)
    return [
        _category(boxes_by_category(truth, c), boxes_by_category(detected, c))
        for c in range(len(labels.categories))
    ]


def _category(truth: Sequence[Boxes], detected: Sequence[Boxes]) -> _Matches:
    images, scores, hits, ignored = [], [], [], []
    for n, (gold, boxes) in enumerate(zip(truth, detected, strict=True)):
        order = np.argsort(-boxes.scores, kind="stable")[:_MAX_DETECTIONS]
        hit, ignore = _match(gold, boxes.xyxy_px[order])
        images.append(np.full(len(order), n, np.int64))
        scores.append(boxes.scores[order])
        hits.append(hit)
        ignored.append(ignore)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return _Matches(
        np.concatenate(images)[order],
        np.concatenate(hits, axis=1)[:, order],
        np.concatenate(ignored, axis=1)[:, order],
        np.array([float(np.count_nonzero(~gold.ignore)) for gold in truth]),
    )


def _match(gold: Boxes, xyxy_px: F32) -> tuple[Bools, Bools]:
    """Match greedily by score, each box once; ignored boxes only where no other fits, any number of times."""
    order = np.argsort(gold.ignore, kind="stable")
    overlap = _overlap(gold, xyxy_px)[:, order]
    crowd = gold.ignore[order]
    hit = np.zeros((len(_IOU_THRESHOLDS), len(xyxy_px)), bool)
    ignored = np.zeros_like(hit)
    for t, threshold in enumerate(_IOU_THRESHOLDS):
        free = np.ones(len(order), bool)
        for d in range(len(xyxy_px)):
            place = _best(overlap[d], free & ~crowd, threshold)
            if place < 0:
                place = _best(overlap[d], crowd, threshold)
                ignored[t, d] = place >= 0
            else:
                free[place] = False
                hit[t, d] = True
    return hit, ignored


def _overlap(gold: Boxes, xyxy_px: F32) -> F64:
    """Return (detections, truth) IoU; for ignored boxes the share of the detection that lies inside."""
    iou = iou_matrix(xyxy_px, gold.xyxy_px)
    iou[:, gold.ignore] = _inside(xyxy_px, gold.xyxy_px[gold.ignore])
    return iou


def _inside(xyxy_px: F32, gold_xyxy_px: F32) -> F64:
    a, b = xyxy_px.astype(np.float64)[:, None, :], gold_xyxy_px.astype(np.float64)[None, :, :]
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0.0, None)
    area = np.clip(a[..., 2:] - a[..., :2], 0.0, None).prod(axis=-1)
    share: F64 = np.divide(sides.prod(axis=-1), area, out=np.zeros(sides.shape[:2]), where=area > 0.0)
    return share


def _best(overlap: F64, allowed: Bools, threshold: float) -> int:
    """Return the last of the best allowed overlaps, as the COCO tool breaks ties; -1 below the threshold."""
    if not allowed.any():
        return -1
    values = np.where(allowed, overlap, -1.0)
    place = len(values) - 1 - int(np.argmax(values[::-1]))
    return place if values[place] >= min(threshold, 1.0 - 1e-10) else -1


def _map(tables: Sequence[_Matches], weights: F64) -> float:
    """Return mAP50-95 with each image counted ``weights`` times; categories without truth are left out."""
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
