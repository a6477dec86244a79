"""``avq eval``: accuracy against labels, fidelity to a float model, or both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avq.builder.labelled import remarks
from avq.builder.pictures.dataset import CalibrationSet, open_set, read_picture
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
from avq.measure.drift import FALSE_ALARM_RATE, DriftReference, DriftVerdict, judge_set
from avq.measure.fidelity import TRUTH_SCORE, fidelity
from avq.measure.labels import Labels, load_labels
from avq.plugins import PluginHost
from avq.progress import Reporter
from avq.types import Accuracy, Detections, SessionOptions

# Open whatever the user named, a bundle or a float model, as a detector.


@dataclass(frozen=True)
class ModelFlags:
    """How a float model is to be read; ignored for bundles, which know."""

    decoder: str | None = None
    preprocess: str | None = None
    classes: str | None = None
    threads: int = 1


def open_subject(
    path: Path, pictures: CalibrationSet, flags: ModelFlags, host: PluginHost, report: Reporter
) -> Detector:
    """A detector for a bundle folder or an ONNX file.

    Raises BundleError or ModelError when it is neither or damaged.
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


def _engines(wanted: str, host: PluginHost, report: Reporter) -> dict[str, Engine]:
    """The engines that run here; for a bundle of a GPU that does not, the reference on its very bytes."""
    engines = host.running_engines()
    if wanted not in engines:
        from avq.builder.emulated_target import EmulatedEngine, target_compiler
        from avq.builder.request import reference_engine

        compiler = target_compiler(wanted, host.engines())
        if compiler is not None:
            engines[wanted] = EmulatedEngine(compiler, reference_engine(host))
            report.message(f"{wanted} cannot run here: its model is judged in the unoptimised reference")
    return engines


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


# ``avq eval --drift``: do these pictures look like those a bundle was calibrated on?


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
) -> dict[str, Any]:
    """The keys of ``avq eval --drift --json``; ``drift`` is the answer, ``limit`` null for too few pictures.

    Raises RequestError for anything but a bundle with probe.onnx and drift.json, and with labels or a reference:
    drift needs neither, and is another question.
    """
    if labels is not None or reference is not None:
        raise RequestError(
            "--drift compares with the calibration pictures only",
            seen="--labels" if labels is not None else "--reference",
            fix="ask for accuracy in a second call, without --drift",
        )
    bundle = open_bundle(subject, allow_unaccepted=True) if subject.is_dir() else None
    if bundle is None or not bundle.has(DRIFT) or bundle.manifest.preprocess is None:
        raise _no_reference(subject, bundle)
    usual = DriftReference.from_json(bundle.read(DRIFT))
    pictures = open_set(data, report, copies=True)
    rows = probe_ratios(
        bundle.read(PROBE),
        reference_engine(host),
        bundle.manifest.preprocess,
        pictures.items,
        report,
        threads=threads,
    )
    verdict = judge_set(usual, rows)
    if verdict.limit is None:
        report.warning(f"{len(rows)} pictures are too few to tell drift from chance, whatever they show")
    names = [item.path.name for item in pictures.items]
    return _answer(verdict, names)


def footer(answer: dict[str, Any]) -> list[str]:
    """What a person reads last."""
    count = f"{answer['beyond']} of {answer['images']} pictures are unusual"
    if answer["limit"] is None:
        return [f"no answer: {count}, and more pictures are needed to tell drift from chance"]
    limit = f"limit {answer['limit']}, at most {FALSE_ALARM_RATE:g} false alarms per set"
    if not answer["drift"]:
        return [f"no drift: {count} ({limit})"]
    return [
        f"DRIFT: {count} ({limit})",
        "  next: look at the pictures, add such ones to the calibration set, and avq build again",
    ]


def tables(answer: dict[str, Any]) -> list[tuple[str, list[dict[str, object]]]]:
    """The ratios that moved most, and the most unusual pictures."""
    moved = [
        {
            "ratio": row["ratio"],
            "usual": f"{row['usual']:.4f} [{row['usual_low']:.4f}, {row['usual_high']:.4f}]",
            "here": f"{row['here']:.4f}",
            "deviation": f"{row['deviation']:+.1f}",
        }
        for row in answer["moved"]
    ]
    return [("What moved most, in spreads of the calibration pictures", moved)]


def _answer(verdict: DriftVerdict, names: list[str]) -> dict[str, Any]:
    order = np.argsort(-verdict.scores, kind="stable")[:5]
    return {
        "drift": verdict.drifting,
        "images": len(verdict.scores),
        "beyond": verdict.beyond,
        "limit": verdict.limit,
        "chance": verdict.chance,
        "score": float(np.median(verdict.scores)),
        "threshold": verdict.reference.threshold,
        "false_alarm_rate": FALSE_ALARM_RATE,
        "reference_images": verdict.reference.pictures,
        "moved": verdict.unusual(),
        "most_unusual": [{"picture": names[i], "score": float(verdict.scores[i])} for i in order],
    }


def _no_reference(subject: Path, bundle: OpenBundle | None) -> RequestError:
    if bundle is None:
        return RequestError(
            f"--drift asks a bundle, and {subject} is none",
            seen="not a folder",
            fix="avq build MODEL.onnx --data DIR -o BUNDLE, then name the bundle",
        )
    strategy = bundle.manifest.strategy.name
    return RequestError(
        f"the bundle {subject} has no drift reference",
        seen=f"strategy {strategy}, {'' if bundle.has(PROBE) else 'no '}probe.onnx, no drift.json",
        fix="a float bundle has no ranges to leave; build one with --strategy static on at least 10 pictures",
    )
