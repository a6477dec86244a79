"""Open the staged bundle as the daemon will, and measure what the gate judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from avq.build.candidates import FLOAT, Trial
from avq.build.dataset import read_picture
from avq.build.gate import Measured
from avq.build.probe_set import SCORE_FLOOR, ProbeSet
from avq.build.request import Request
from avq.build.stage import Staged
from avq.bundle import OpenBundle, open_bundle
from avq.engines.isa import instruction_set
from avq.measure.accuracy import evaluate
from avq.measure.detector import detector_of
from avq.measure.fidelity import fidelity
from avq.measure.labels import Labels, load_labels
from avq.types import Accuracy, Detections


@dataclass(frozen=True)
class Verified:
    """What the staged bundle did on the held-out pictures.

    Attributes:
        measured: the gate's input.
        detections: of the bundle, per held-out picture; None without a decoder.
        messages: label categories that were left out, and the like.
    """

    measured: Measured
    detections: tuple[Detections, ...] | None
    messages: tuple[str, ...] = ()


def verify(staged: Staged, request: Request, probe_set: ProbeSet, chosen: Trial) -> Verified:
    """Detections from the bundle's own parts against the float model, and against labels where given."""
    bundle = open_bundle(staged.folder, allow_unaccepted=True, isa=instruction_set())
    bundle.verify()
    is_float = chosen.candidate.encoding == FLOAT
    if probe_set.float_detections is None:
        measured = Measured(None, None, None, chosen.sqnr_db, chosen.latency, is_float)
        return Verified(measured, None)
    found = _detect(bundle, request, probe_set)
    labels = _labels(request, staged)
    measured = Measured(
        float_accuracy=_accuracy(labels, probe_set, probe_set.float_detections),
        accuracy=_accuracy(labels, probe_set, found),
        fidelity=fidelity(probe_set.float_detections, found),
        sqnr_db=chosen.sqnr_db,
        latency=chosen.latency,
        is_float=is_float,
    )
    return Verified(measured, found, (labels.message,) if labels is not None and labels.message else ())


def _detect(bundle: OpenBundle, request: Request, probe_set: ProbeSet) -> tuple[Detections, ...]:
    detector = detector_of(bundle, request.float_engines, families=request.families)
    try:
        return tuple(
            detector.detect(read_picture(item), score_threshold=SCORE_FLOOR) for item in probe_set.items
        )
    finally:
        detector.close()


def _labels(request: Request, staged: Staged) -> Labels | None:
    recipe = request.recipe
    if recipe.labels is None:
        return None
    return load_labels(recipe.labels, class_map=recipe.class_map, class_names=staged.manifest.class_names)


def _accuracy(labels: Labels | None, probe_set: ProbeSet, found: Sequence[Detections]) -> Accuracy | None:
    """mAP over the held-out pictures that are labelled."""
    if labels is None:
        return None
    image_ids = labels.match(probe_set.paths)
    by_image: Mapping[int, Detections] = {
        image_ids[path]: detections
        for path, detections in zip(probe_set.paths, found, strict=True)
        if path in image_ids
    }
    return evaluate(labels, by_image)
