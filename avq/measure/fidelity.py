"""Fidelity of a quantized detector to its float model: in boxes, and as SQNR of raw outputs. Needs no labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from avq.compare import iou_matrix
from avq.errors import DataError, ModelError
from avq.measure.accuracy import Boxes, as_boxes, average_precision
from avq.types import F64, AnyArray, Detections, Fidelity, RawOutputs

#: Lowest score of a float box that counts as confident.
FIRM_SCORE = 0.5
#: Lowest score of a float box that is ground truth for the COCO metrics.
TRUTH_SCORE = 0.3
#: Lowest IoU of a recovered box.
MIN_IOU = 0.5
#: Lowest score of a recovered box / score of the float box.
MIN_SCORE_SHARE = 0.5


def fidelity(
    float_dets: Sequence[Detections], quant_dets: Sequence[Detections], *, with_map: bool = True
) -> Fidelity:
    """Compare detections of the float and the quantized model, picture by picture.

    ``lost`` is the share of the float model's boxes with score >= 0.5 for which the quantized model has no box of
    the same class with IoU >= 0.5 and at least half the score. Matching is one to one, best IoU first. The confidence
    shift is the mean of quantized minus float score over the matched boxes. mAP and AP50 use the float boxes with
    score >= 0.3 as ground truth.

    Args:
        float_dets: detections of the float model, from a low score (0.01) on.
        quant_dets: detections of the quantized model on the same pictures, in the same order, with the same NMS.
        with_map: also compute mAP and AP50; else they are NaN, as without a ground truth box.

    Returns:
        With ``boxes == 0`` the float model had no confident box: ``lost`` and the shift are then 0 and prove nothing.

    Raises:
        DataError: there are no pictures, or the numbers differ.
        MachineError: ``with_map`` is set and faster-coco-eval is not installed.
    """
    _require_pairs(float_dets, quant_dets)
    shifts: list[F64] = []
    counts: list[int] = []
    for reference, quantized in zip(float_dets, quant_dets, strict=True):
        firm = reference.above(FIRM_SCORE)
        counts.append(len(firm))
        shifts.append(matched_shifts(firm, quantized))
    matched, boxes = np.concatenate(shifts), sum(counts)
    mean_ap, ap50 = _coco(float_dets, quant_dets) if with_map else (np.nan, np.nan)
    return Fidelity(
        images=len(float_dets),
        boxes=boxes,
        lost=(boxes - len(matched)) / boxes if boxes else 0.0,
        confidence_shift=float(matched.mean()) if len(matched) else 0.0,
        map=float(mean_ap),
        ap50=float(ap50),
        picture_boxes=tuple(counts),
        picture_lost=tuple(count - len(own) for count, own in zip(counts, shifts, strict=True)),
        picture_shift=tuple(float(own.sum()) for own in shifts),
    )


def matched_shifts(firm: Detections, quantized: Detections) -> F64:
    """Return (M,) quantized minus float score of each recovered float box, M <= len(firm)."""
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
            "there are no pictures to compare" if not float_dets else "the two runs have different pictures",
            seen=f"{len(float_dets)} pictures of the float model, {len(quant_dets)} of the quantized one",
            fix="run both models on the same pictures, at least one",
        )


# Signal to quantization noise ratio per graph output, in dB, over a stream of pictures.


class SqnrMeter:
    """Accumulate signal and noise energy in constant memory.

    SQNR = 10 log10(sum(reference^2) / sum((reference - output)^2)), with float64 sums over every element of every
    picture: a picture with large outputs weighs more than an empty one.
    """

    def __init__(self) -> None:
        self.images = 0
        self._signal: dict[str, float] = {}
        self._noise: dict[str, float] = {}

    def add(self, reference_outputs: RawOutputs, outputs: RawOutputs) -> None:
        """Add the outputs of one picture.

        Args:
            reference_outputs: name -> output of the float model, any shape.
            outputs: the same of the model under test.

        Raises:
            DataError: output names or shapes differ.
            ModelError: an output holds NaN or infinity.
        """
        _require_same_names(reference_outputs, outputs)
        for name, reference in reference_outputs.items():
            clean = _finite(name, reference, "the reference model")
            noisy = _finite(name, outputs[name], "the model under test")
            _require_same_shape(name, clean, noisy)
            self._signal[name] = self._signal.get(name, 0.0) + _energy(clean)
            self._noise[name] = self._noise.get(name, 0.0) + _energy(clean - noisy)
        self.images += 1

    def result_db(self) -> dict[str, float]:
        """Return output name -> dB: ``inf`` where nothing differs, ``-inf`` for noise on an all-zero output.

        Raises:
            DataError: no picture was added.
        """
        if not self.images:
            raise DataError("no outputs were compared", fix="add at least one picture")
        return {name: _ratio_db(self._signal[name], self._noise[name]) for name in self._signal}


def sqnr_db(reference: AnyArray, output: AnyArray) -> float:
    """Return the SQNR of one tensor against its reference, in dB; the shapes must be equal."""
    meter = SqnrMeter()
    meter.add({"tensor": reference}, {"tensor": output})
    return meter.result_db()["tensor"]


def _energy(values: F64) -> float:
    return float(np.square(values).sum())  # not np.dot: its threads spin when the cores are busy


def _ratio_db(signal: float, noise: float) -> float:
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf


def _finite(name: str, values: AnyArray, whose: str) -> F64:
    wide = np.asarray(values, np.float64)
    bad = int(wide.size - np.count_nonzero(np.isfinite(wide)))
    if bad:
        raise ModelError(
            f"output '{name}' of {whose} is not finite",
            seen=f"{bad} of {wide.size} values are NaN or Inf",
            fix="keep the nodes before it in float, or check the picture that caused it",
        )
    return wide


def _require_same_names(reference: Mapping[str, AnyArray], outputs: Mapping[str, AnyArray]) -> None:
    if not reference or set(reference) != set(outputs):
        raise DataError(
            "the two models do not have the same outputs",
            seen=f"reference: {sorted(reference)}; under test: {sorted(outputs)}",
            fix="compare a model with its own float parent",
        )


def _require_same_shape(name: str, clean: F64, noisy: F64) -> None:
    if clean.shape != noisy.shape:
        raise DataError(
            f"the shape of output '{name}' differs from the reference",
            seen=f"{noisy.shape}, reference {clean.shape}",
            fix="compare raw heads: the length of outputs after NMS varies between pictures",
        )
