"""Open the staged bundle as the daemon does, and measure its accuracy for the gate."""

from __future__ import annotations

from dataclasses import dataclass

from avq.builder.context import BuildContext
from avq.builder.gate import Measured
from avq.builder.holdout import SCORE_FLOOR, HoldoutSet
from avq.builder.labelled import accuracy, labels_of, map_loss, remarks
from avq.builder.pictures.dataset import read_picture
from avq.builder.request import Request
from avq.builder.stage import Staged
from avq.builder.trials.serving import FLOAT, Trial
from avq.bundle import OpenBundle, open_bundle
from avq.engines.cpu import instruction_set
from avq.measure.detector import detector_of
from avq.measure.fidelity import fidelity
from avq.types import Detections


@dataclass(frozen=True)
class Verified:
    """Results of the staged bundle on the held-out pictures.

    Attributes:
        measured: for the gate.
        detections: of the bundle, per held-out picture; None without a decoder.
        messages: remarks on the labels, e.g. categories without a class.
    """

    measured: Measured
    detections: tuple[Detections, ...] | None
    messages: tuple[str, ...] = ()


def verify(staged: Staged, chosen: Trial, context: BuildContext) -> Verified:
    """Detect with the bundle's own parts; compare with the float model, and with labels where given."""
    bundle = open_bundle(staged.folder, allow_unaccepted=True, isa=instruction_set())
    bundle.verify()
    request, holdout = context.request, context.holdout
    is_float = chosen.candidate.encoding == FLOAT
    # Without pictures the trial ran on drawn noise: its SQNR is no accuracy.
    sqnr_db = chosen.sqnr_db if request.recipe.data is not None else None
    if holdout.float_detections is None:
        return Verified(
            Measured(None, None, None, sqnr_db, chosen.latency, is_float, runs_in=chosen.runs_in), None
        )
    detections = _detect(bundle, request, holdout)
    labels = labels_of(request, staged.manifest.class_names)
    measured = Measured(
        float_accuracy=accuracy(labels, holdout, holdout.float_detections),
        accuracy=accuracy(labels, holdout, detections),
        map_loss=map_loss(labels, holdout.paths, holdout.float_detections, detections),
        runs_in=chosen.runs_in,
        fidelity=fidelity(holdout.float_detections, detections),
        sqnr_db=sqnr_db,
        latency=chosen.latency,
        is_float=is_float,
    )
    return Verified(measured, detections, remarks(labels, holdout.items) if labels is not None else ())


def _detect(bundle: OpenBundle, request: Request, holdout: HoldoutSet) -> tuple[Detections, ...]:
    detector = detector_of(bundle, request.float_engines, families=request.families)
    try:
        return tuple(
            detector.detect(read_picture(item), score_threshold=SCORE_FLOOR) for item in holdout.items
        )
    finally:
        detector.close()
