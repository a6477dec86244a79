"""``avq eval``: accuracy against labels, fidelity to a float model, or drift of the pictures (``--drift``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from avq.builder.labelled import remarks
from avq.builder.pictures.dataset import CalibrationSet, open_set, read_picture, report_remarks
from avq.builder.request import reference_engine
from avq.builder.stage import probe_ratios
from avq.bundle import DRIFT, PROBE, OpenBundle, open_bundle
from avq.config import parse_class_map
from avq.engines.cpu import instruction_set
from avq.errors import RequestError
from avq.hookspecs import Engine
from avq.measure.accuracy import bootstrap_interval
from avq.measure.accuracy import evaluate as accuracy_of
from avq.measure.detector import Detector, detector_of, open_detector
from avq.measure.drift import FALSE_ALARM_RATE, DriftReference, DriftVerdict, UnusualRatio, judge_drift
from avq.measure.fidelity import TRUTH_SCORE, fidelity
from avq.measure.labels import Labels, load_labels
from avq.plugins import PluginHost
from avq.progress import Reporter
from avq.types import Accuracy, Detections, SessionOptions


@dataclass(frozen=True)
class ModelFlags:
    """Flags of a float model; a bundle contains these settings and ignores them."""

    decoder: str | None = None
    preprocess: str | None = None
    classes: str | None = None
    threads: int = 1


def open_subject(
    path: Path, pictures: CalibrationSet, flags: ModelFlags, host: PluginHost, report: Reporter
) -> Detector:
    """Open a bundle folder or an ONNX file as a detector.

    Args:
        path: the bundle or model.
        pictures: where to search the preprocessing of a model.
        flags: settings of a model.
        host: loaded plugins.
        report: progress.

    Raises:
        BundleError, ModelError: ``path`` is neither, or is damaged.
    """
    if path.is_dir():
        bundle = open_bundle(path, allow_unaccepted=True, isa=instruction_set())
        engines = _engines(bundle.manifest.engine.name, host, report)
        return detector_of(bundle, engines, threads=flags.threads, families=host.decoders())
    from avq.builder.frontend.analyse import analyse_for_command

    request, analysis = analyse_for_command(
        path,
        pictures,
        host,
        report,
        decoder=flags.decoder,
        preprocess=flags.preprocess,
        classes=flags.classes,
        threads=flags.threads,
    )
    session = request.reference.open(
        analysis.model.proto.SerializeToString(), SessionOptions(threads=flags.threads)
    )
    return open_detector(
        session, analysis.spec, analysis.decoder, analysis.class_names, families=request.families
    )


def _engines(name: str, host: PluginHost, report: Reporter) -> dict[str, Engine]:
    """Return the engines that run here, and an emulation of ``name`` if that does not run here."""
    engines = host.running_engines()
    if name not in engines:
        from avq.builder.emulated_target import EmulatedEngine, target_compiler
        from avq.builder.request import reference_engine

        compiler = target_compiler(name, host.engines())
        if compiler is not None:
            engines[name] = EmulatedEngine(compiler, reference_engine(host))
            report.message(f"{name} cannot run here; its model is evaluated in unoptimised onnxruntime")
    return engines


# COCO metrics integrate over the score, so boxes of low score count too.
SCORE_FLOOR = 0.01
_RESAMPLES = 1000


class MapChange(TypedDict):
    """mAP minus the reference's mAP, with the 95 % interval over pictures."""

    difference: float
    low: float
    high: float


class _Reference(TypedDict):
    map: float
    ap50: float
    lost: float
    boxes: int
    confidence_shift: float
    fidelity_map: float
    fidelity_ap50: float


class ReferenceJson(_Reference, total=False):
    """Accuracy of the reference, and fidelity to it; ``map_change`` needs labels."""

    map_change: MapChange


class _Eval(TypedDict):
    images: int
    mean_confidence: float


class EvalJson(_Eval, total=False):
    """Object of ``avq eval --json``; ``skipped`` lists label categories that the model does not have."""

    map: float
    ap50: float
    per_class: dict[str, float]
    skipped: list[str]
    reference: ReferenceJson


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
) -> EvalJson:
    """Measure accuracy on pictures.

    With labels, ``map`` is measured against them, for the reference too, with the paired interval of the difference.
    Without labels, ``map`` is measured against the reference's boxes with score >= 0.3.

    Args:
        subject: bundle or model to evaluate.
        data: folder of pictures.
        labels: COCO JSON labels.
        maps: entries "category=class,class" of label categories and model classes.
        reference: bundle or model to compare with.
        host: loaded plugins.
        report: progress.
        **flags: fields of ModelFlags.

    Raises:
        RequestError: neither ``labels`` nor ``reference`` is given.
        DataError, BundleError, ModelError: an input is damaged.
    """
    if labels is None and reference is None:
        raise RequestError(
            "no ground truth to compare with",
            seen="neither --labels nor --reference",
            fix="add --labels coco.json, or --reference FLOAT_MODEL.onnx for fidelity",
        )
    model_flags = ModelFlags(**flags)
    pictures = open_set(data, report, copies=True)
    report_remarks(pictures, report)
    detector = open_subject(subject, pictures, model_flags, host, report)
    class_names = detector.class_names
    detections = detections_of(detector, pictures, report, subject.name)
    result: EvalJson = {"images": len(detections), "mean_confidence": mean_confidence(detections)}
    truth = _load_truth(labels, maps, class_names, pictures, report)
    if truth is not None:
        accuracy = accuracy_on(truth, pictures, detections)
        result["images"] = accuracy.images
        result["map"] = accuracy.map
        result["ap50"] = accuracy.ap50
        result["per_class"] = dict(accuracy.per_class)
        result["skipped"] = list(accuracy.skipped)
    if reference is not None:
        other = open_subject(reference, pictures, model_flags, host, report)
        expected = detections_of(other, pictures, report, reference.name)
        comparison = _compare(expected, detections, truth, pictures)
        if truth is None:
            result["map"] = comparison["map"]
            result["ap50"] = comparison["ap50"]
            result["per_class"] = {}
        result["reference"] = comparison
    return result


def _load_truth(
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


def _compare(
    expected: Sequence[Detections],
    detections: Sequence[Detections],
    truth: Labels | None,
    pictures: CalibrationSet,
) -> ReferenceJson:
    """Measure fidelity to the reference, and with labels the reference's accuracy."""
    agreement = fidelity(expected, detections)
    accuracy = accuracy_on(truth, pictures, expected) if truth is not None else None
    comparison: ReferenceJson = {
        "map": accuracy.map if accuracy is not None else agreement.map,
        "ap50": accuracy.ap50 if accuracy is not None else agreement.ap50,
        "lost": agreement.lost,
        "boxes": agreement.boxes,
        "confidence_shift": agreement.confidence_shift,
        "fidelity_map": agreement.map,
        "fidelity_ap50": agreement.ap50,
    }
    if truth is not None:
        comparison["map_change"] = _map_change(truth, pictures, expected, detections)
    return comparison


def _map_change(
    truth: Labels,
    pictures: CalibrationSet,
    expected: Sequence[Detections],
    detections: Sequence[Detections],
) -> MapChange:
    both = (by_image(truth, pictures, expected), by_image(truth, pictures, detections))
    change = bootstrap_interval(truth, *both, resamples=_RESAMPLES)
    return {"difference": change.difference, "low": change.low, "high": change.high}


def detections_of(
    detector: Detector, pictures: CalibrationSet, report: Reporter, label: str
) -> list[Detections]:
    """Detect on every picture, in the order of the set, and close the detector."""
    try:
        return [
            detector.detect(read_picture(item), score_threshold=SCORE_FLOOR)
            for item in report.track(pictures.items, label, len(pictures.items))
        ]
    finally:
        detector.close()


def accuracy_on(truth: Labels, pictures: CalibrationSet, detections: Sequence[Detections]) -> Accuracy:
    """Return COCO metrics over the labelled pictures among ``pictures``."""
    return accuracy_of(truth, by_image(truth, pictures, detections))


def by_image(
    truth: Labels, pictures: CalibrationSet, detections: Sequence[Detections]
) -> dict[int, Detections]:
    """Map image ids of the label file to detections, for the labelled pictures among ``pictures``."""
    paths = [item.path for item in pictures.items]
    image_ids = truth.match(paths)
    pairs = zip(paths, detections, strict=True)
    return {image_ids[path]: boxes for path, boxes in pairs if path in image_ids}


def mean_confidence(detections: Sequence[Detections]) -> float:
    """Return the mean score of boxes with score >= 0.3; NaN if there is none."""
    scores = [boxes.above(TRUTH_SCORE).scores for boxes in detections]
    merged = np.concatenate(scores) if scores else np.zeros(0)
    return float(merged.mean()) if len(merged) else math.nan


class UnusualPicture(TypedDict):
    """A picture, its drift score, and the share of its activations outside the calibrated ranges."""

    picture: str
    score: float
    share: float


class DriftJson(TypedDict):
    """Object of ``avq eval --drift --json``; ``limit`` is null for too few pictures.

    ``share`` and ``occupancy`` are means over the pictures: of activations outside their calibrated ranges, and
    outside the inner eighth of them. ``usual_share`` and ``usual_occupancy`` are those of the calibration pictures.
    """

    drift: bool
    images: int
    share: float
    occupancy: float
    usual_share: float
    usual_occupancy: float
    beyond: int
    limit: int | None
    chance: float
    score: float
    threshold: float
    false_alarm_rate: float
    reference_images: int
    moved: list[UnusualRatio]
    most_unusual: list[UnusualPicture]


def drift(
    *,
    subject: Path,
    data: Path,
    host: PluginHost,
    report: Reporter,
    threads: int = 1,
    labels: Path | None = None,
    reference: Path | None = None,
    **_: Any,
) -> DriftJson:
    """Compare pictures with the calibration pictures of a bundle.

    Args:
        subject: bundle with a drift probe.
        data: folder of pictures.
        host: loaded plugins.
        report: progress.
        threads: number of engine threads.
        labels, reference: must be None.

    Raises:
        RequestError: ``subject`` has no drift probe, or ``labels`` or ``reference`` is given.
        DataError: the pictures cannot be read.
    """
    if labels is not None or reference is not None:
        raise RequestError(
            "--drift cannot be combined with --labels or --reference",
            seen="--labels" if labels is not None else "--reference",
            fix="measure accuracy in a second call, without --drift",
        )
    bundle = open_bundle(subject, allow_unaccepted=True) if subject.is_dir() else None
    if bundle is None or not bundle.has(DRIFT) or bundle.manifest.preprocess is None:
        raise _no_probe(subject, bundle)
    baseline = DriftReference.from_json(bundle.read(DRIFT))
    pictures = open_set(data, report, copies=True)
    report_remarks(pictures, report)
    rows = probe_ratios(
        bundle.read(PROBE),
        reference_engine(host),
        bundle.manifest.preprocess,
        pictures.items,
        report,
        threads=threads,
    )
    verdict = judge_drift(baseline, rows)
    if verdict.limit is None:
        report.warning(f"{len(rows)} pictures are too few to distinguish drift from chance")
    return _drift_json(verdict, [item.path.name for item in pictures.items])


def footer(answer: DriftJson) -> list[str]:
    """Return the lines to print below the result."""
    count = f"{answer['beyond']} of {answer['images']} pictures are unusual"
    shares = (
        f"  activations outside their calibrated ranges: {100 * answer['share']:.2g}% "
        f"(calibration pictures: {100 * answer['usual_share']:.2g}%); "
        f"outside the inner eighth: {answer['occupancy']:.1%} ({answer['usual_occupancy']:.1%})"
    )
    if answer["limit"] is None:
        return [f"cannot tell: {count}; more pictures are needed to distinguish drift from chance", shares]
    limit = f"limit {answer['limit']}, at most {FALSE_ALARM_RATE:g} false alarms per set"
    if not answer["drift"]:
        return [f"no drift: {count} ({limit})", shares]
    return [
        f"DRIFT: {count} ({limit})",
        shares,
        "  next: add pictures of this kind to the calibration set, and run avq build again",
    ]


def tables(answer: DriftJson) -> list[tuple[str, list[dict[str, object]]]]:
    """Return the table of the ratios with the largest deviation."""
    moved: list[dict[str, object]] = [
        {
            "ratio": row["ratio"],
            "usual": f"{row['usual']:.4f} [{row['usual_low']:.4f}, {row['usual_high']:.4f}]",
            "here": f"{row['here']:.4f}",
            "deviation": f"{row['deviation']:+.1f}",
        }
        for row in answer["moved"]
    ]
    return [("Largest deviations, in spreads of the calibration pictures", moved)]


def _drift_json(verdict: DriftVerdict, names: list[str]) -> DriftJson:
    order = np.argsort(-verdict.scores, kind="stable")[:5]
    shares = verdict.shares
    return {
        "drift": verdict.drifting,
        "images": len(verdict.scores),
        "share": verdict.share,
        "occupancy": verdict.occupancy,
        "usual_share": verdict.reference.usual_share,
        "usual_occupancy": verdict.reference.usual_occupancy,
        "beyond": verdict.beyond,
        "limit": verdict.limit,
        "chance": verdict.chance,
        "score": float(np.median(verdict.scores)),
        "threshold": verdict.reference.threshold,
        "false_alarm_rate": FALSE_ALARM_RATE,
        "reference_images": verdict.reference.pictures,
        "moved": verdict.unusual(),
        "most_unusual": [
            {"picture": names[i], "score": float(verdict.scores[i]), "share": shares[i]} for i in order
        ],
    }


def _no_probe(subject: Path, bundle: OpenBundle | None) -> RequestError:
    if bundle is None:
        return RequestError(
            f"--drift needs a bundle: {subject} is not one",
            seen="not a folder",
            fix="avq build MODEL.onnx --data DIR -o BUNDLE, then give BUNDLE",
        )
    strategy = bundle.manifest.strategy.name
    return RequestError(
        f"bundle {subject} has no drift probe",
        seen=f"strategy {strategy}, {'' if bundle.has(PROBE) else 'no '}probe.onnx, no drift.json",
        fix="build with --strategy static on 10 pictures or more",
    )
