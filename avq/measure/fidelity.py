"""How faithful a quantized detector is to its float parent, in boxes; no labels needed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from avq.compare import iou_matrix
from avq.errors import DataError
from avq.measure.accuracy import Boxes, as_boxes, average_precision
from avq.types import F64, Detections, Fidelity

#: Float boxes from this score on are looked for.
FIRM_SCORE = 0.5
#: Float boxes from this score on are truth for the COCO metrics.
TRUTH_SCORE = 0.3
#: A box is found again from this overlap on ...
MIN_IOU = 0.5
#: ... and with at least this share of its score.
MIN_SCORE_SHARE = 0.5


def fidelity(
    float_dets: Sequence[Detections], quant_dets: Sequence[Detections], *, with_map: bool = True
) -> Fidelity:
    """Compare detections of the float and the quantized model, picture by picture in the same order.

    Lost is the share of the float model's boxes with score >= 0.5 for which the quantized model has no box
    of the same class with IoU >= 0.5 and at least half the score. Matching is one to one, best IoU first,
    so one quantized box cannot stand for two float boxes. The confidence shift is the mean of quantized
    minus float score over the matched boxes. mAP and AP50 take the float boxes with score >= 0.3 as truth.

    ``Fidelity.boxes == 0`` means that the float model saw nothing firm: lost and shift are then 0 and prove
    nothing, the caller has to decide. mAP is nan when ``with_map`` is False or there is no truth box.
    Give detections from a low score (0.01) on, with the same NMS on both sides.

    Raises:
        DataError: no pictures, or unequally many.
        MachineError: ``with_map`` and faster-coco-eval is not installed.
    """
    _require_pairs(float_dets, quant_dets)
    shifts: list[F64] = []
    boxes = 0
    for reference, quantized in zip(float_dets, quant_dets, strict=True):
        firm = reference.above(FIRM_SCORE)
        boxes += len(firm)
        shifts.append(matched_shifts(firm, quantized))
    matched = np.concatenate(shifts)
    mean_ap, ap50 = _coco(float_dets, quant_dets) if with_map else (np.nan, np.nan)
    return Fidelity(
        images=len(float_dets),
        boxes=boxes,
        lost=(boxes - len(matched)) / boxes if boxes else 0.0,
        confidence_shift=float(matched.mean()) if len(matched) else 0.0,
        map=float(mean_ap),
        ap50=float(ap50),
    )


def matched_shifts(firm: Detections, quantized: Detections) -> F64:
    """(M,) quantized minus float score of each float box that was found again, M <= len(firm)."""
    iou = iou_matrix(firm.boxes_xyxy_px, quantized.boxes_xyxy_px)
    same_class = firm.class_ids[:, None] == quantized.class_ids[None, :]
    strong = quantized.scores[None, :] >= MIN_SCORE_SHARE * firm.scores[:, None]
    iou[~(same_class & strong & (iou >= MIN_IOU))] = -1.0
    shifts: list[float] = []
    while iou.size and iou.max() >= MIN_IOU:
        row, column = np.unravel_index(int(iou.argmax()), iou.shape)
        shifts.append(float(quantized.scores[column]) - float(firm.scores[row]))
        iou[row, :] = -1.0
        iou[:, column] = -1.0
    return np.array(shifts, np.float64)


def _coco(float_dets: Sequence[Detections], quant_dets: Sequence[Detections]) -> tuple[float, float]:
    truth = [_plain(d.above(TRUTH_SCORE)) for d in float_dets]
    classes = {int(c) for t in truth for c in t.categories}
    if not classes:
        return float("nan"), float("nan")
    result = average_precision(truth, [_plain(d) for d in quant_dets], classes)
    return result.map, result.ap50


def _plain(detections: Detections) -> Boxes:
    return as_boxes(detections.boxes_xyxy_px, detections.class_ids, detections.scores)


def _require_pairs(float_dets: Sequence[Detections], quant_dets: Sequence[Detections]) -> None:
    if not float_dets or len(float_dets) != len(quant_dets):
        raise DataError(
            "there is nothing to compare" if not float_dets else "the two runs saw different pictures",
            seen=f"{len(float_dets)} pictures of the float model, {len(quant_dets)} of the quantized one",
            fix="run both models on the same pictures, at least one",
        )
