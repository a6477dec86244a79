"""Open the staged bundle as the daemon will, and measure what the gate judges."""

from __future__ import annotations

from dataclasses import dataclass

from avq.builder.gate import Measured
from avq.builder.holdout import SCORE_FLOOR, HoldoutSet
from avq.builder.labelled import accuracy, labels_of, remarks
from avq.builder.pictures.dataset import read_picture
from avq.builder.request import Request
from avq.builder.stage import Staged
from avq.builder.trials.bench import FLOAT, Trial
from avq.bundle import OpenBundle, open_bundle
from avq.engines.cpu import instruction_set
from avq.measure.detector import detector_of
from avq.measure.fidelity import fidelity
from avq.types import Detections


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


def verify(staged: Staged, request: Request, holdout: HoldoutSet, chosen: Trial) -> Verified:
    """Detections from the bundle's own parts against the float model, and against labels where given."""
    bundle = open_bundle(staged.folder, allow_unaccepted=True, isa=instruction_set())
    bundle.verify()
    is_float = chosen.candidate.encoding == FLOAT
    if holdout.float_detections is None:
        measured = Measured(None, None, None, chosen.sqnr_db, chosen.latency, is_float)
        return Verified(measured, None)
    found = _detect(bundle, request, holdout)
    labels = labels_of(request, staged.manifest.class_names)
    measured = Measured(
        float_accuracy=accuracy(labels, holdout, holdout.float_detections),
        accuracy=accuracy(labels, holdout, found),
        fidelity=fidelity(holdout.float_detections, found),
        sqnr_db=chosen.sqnr_db,
        latency=chosen.latency,
        is_float=is_float,
    )
    return Verified(measured, found, remarks(labels, holdout.items) if labels is not None else ())


def _detect(bundle: OpenBundle, request: Request, holdout: HoldoutSet) -> tuple[Detections, ...]:
    detector = detector_of(bundle, request.float_engines, families=request.families)
    try:
        return tuple(
            detector.detect(read_picture(item), score_threshold=SCORE_FLOOR) for item in holdout.items
        )
    finally:
        detector.close()
