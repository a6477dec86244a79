"""``avq eval``: accuracy against labels, fidelity to a float model, or both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avq.assess.opening import ModelFlags, open_subject
from avq.builder.pictures.dataset import CalibrationSet, open_set, read_picture
from avq.builder.pictures.labelled import remarks
from avq.config import parse_class_map
from avq.errors import RequestError
from avq.measure.accuracy import bootstrap_interval
from avq.measure.accuracy import evaluate as accuracy_of
from avq.measure.detector import Detector
from avq.measure.fidelity import TRUTH_SCORE, fidelity
from avq.measure.labels import Labels, load_labels
from avq.plugins import PluginHost
from avq.progress import Reporter
from avq.types import Accuracy, Detections

# COCO metrics integrate over the score, so nearly everything the model says has to be kept.
SCORE_FLOOR = 0.01
_RESAMPLES = 1000


def evaluate(
    *,
    subject: Path,
    data: Path,
    labels: Path | None,
    maps: Sequence[str],
    reference: Path | None,
    host: PluginHost,
    report: Reporter,
    **flags: Any,
) -> dict[str, Any]:
    """The keys of ``avq eval --json``.

    With labels, ``map`` is against them and ``reference`` (if named) is measured the same way, with the paired
    interval of the difference. Without labels, ``map`` is against the reference's boxes with score >= 0.3.

    Raises RequestError when there is neither a label file nor a reference to compare with.
    """
    if labels is None and reference is None:
        raise RequestError(
            "nothing to compare with",
            seen="neither --labels nor --reference",
            fix="add --labels coco.json, or --reference FLOAT_MODEL.onnx for fidelity",
        )
    model_flags = ModelFlags(**flags)
    pictures = open_set(data, report, copies=True)
    detector = open_subject(subject, pictures, model_flags, host, report)
    class_names = detector.class_names
    found = detections_of(detector, pictures, report, subject.name)
    answer: dict[str, Any] = {"images": len(found), "mean_confidence": mean_confidence(found)}
    truth = _truth(labels, maps, class_names, pictures, report)
    if truth is not None:
        answer.update(_as_json(accuracy_on(truth, pictures, found)))
    if reference is not None:
        other = open_subject(reference, pictures, model_flags, host, report)
        expected = detections_of(other, pictures, report, reference.name)
        answer.update(_against(expected, found, truth, pictures))
    return answer


def _truth(
    labels: Path | None,
    maps: Sequence[str],
    class_names: tuple[str, ...],
    pictures: CalibrationSet,
    report: Reporter,
) -> Labels | None:
    if labels is None:
        return None
    truth = load_labels(labels, class_map=parse_class_map(maps), class_names=class_names)
    for remark in remarks(truth, pictures.items):
        report.warning(remark)
    return truth


def _against(
    expected: Sequence[Detections],
    found: Sequence[Detections],
    truth: Labels | None,
    pictures: CalibrationSet,
) -> dict[str, Any]:
    """What the reference adds: its own accuracy where labels exist, and fidelity to it in any case."""
    faithful = fidelity(expected, found)
    own = accuracy_on(truth, pictures, expected) if truth is not None else None
    block: dict[str, Any] = {
        "map": own.map if own is not None else faithful.map,
        "ap50": own.ap50 if own is not None else faithful.ap50,
        "lost": faithful.lost,
        "boxes": faithful.boxes,
        "confidence_shift": faithful.confidence_shift,
        "fidelity_map": faithful.map,
        "fidelity_ap50": faithful.ap50,
    }
    if truth is not None:
        block["map_change"] = _change(truth, pictures, expected, found)
        return {"reference": block}
    return {"map": faithful.map, "ap50": faithful.ap50, "per_class": {}, "reference": block}


def _change(
    truth: Labels, pictures: CalibrationSet, expected: Sequence[Detections], found: Sequence[Detections]
) -> dict[str, float]:
    """mAP minus the reference's, and where it lies by chance of the pictures (95 %)."""
    both = (by_image(truth, pictures, expected), by_image(truth, pictures, found))
    change = bootstrap_interval(truth, *both, resamples=_RESAMPLES)
    return {"difference": change.difference, "low": change.low, "high": change.high}


def detections_of(
    detector: Detector, pictures: CalibrationSet, report: Reporter, label: str
) -> list[Detections]:
    """Boxes of every picture, in the set's order; closes the detector."""
    try:
        return [
            detector.detect(read_picture(item), score_threshold=SCORE_FLOOR)
            for item in report.track(pictures.items, label, len(pictures.items))
        ]
    finally:
        detector.close()


def accuracy_on(truth: Labels, pictures: CalibrationSet, found: Sequence[Detections]) -> Accuracy:
    """COCO metrics over the labelled pictures among ``pictures``."""
    return accuracy_of(truth, by_image(truth, pictures, found))


def by_image(truth: Labels, pictures: CalibrationSet, found: Sequence[Detections]) -> dict[int, Detections]:
    """Label file's image id -> boxes, for the labelled pictures among ``pictures``."""
    paths = [item.path for item in pictures.items]
    image_ids = truth.match(paths)
    pairs = zip(paths, found, strict=True)
    return {image_ids[path]: boxes for path, boxes in pairs if path in image_ids}


def mean_confidence(found: Sequence[Detections]) -> float:
    """Mean score of boxes with score >= 0.3; nan when there is none."""
    scores = np.concatenate([boxes.above(TRUTH_SCORE).scores for boxes in found]) if found else np.zeros(0)
    return float(scores.mean()) if len(scores) else math.nan


def _as_json(accuracy: Accuracy) -> dict[str, Any]:
    return {
        "images": accuracy.images,
        "map": accuracy.map,
        "ap50": accuracy.ap50,
        "per_class": dict(accuracy.per_class),
        "skipped": list(accuracy.skipped),
    }
