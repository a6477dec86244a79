"""Open the staged bundle as the daemon does, and measure its accuracy for the gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from avq.builder.answers import missed_of
from avq.builder.context import BuildContext
from avq.builder.gate import Measured
from avq.builder.holdout import SCORE_FLOOR
from avq.builder.labelled import accuracy, labels_of, map_loss, remarks
from avq.builder.pictures.dataset import Item, read_picture
from avq.builder.stage import Staged
from avq.builder.trials.serving import FLOAT, Trial
from avq.builder.verdict_pictures import VerdictSet
from avq.bundle import OpenBundle, open_bundle
from avq.engines.cpu import instruction_set
from avq.measure.detector import detector_of
from avq.measure.fidelity import fidelity
from avq.measure.labels import Labels
from avq.types import Detections


@dataclass(frozen=True)
class Verified:
    """Results of the staged bundle on the pictures of the verdict.

    Attributes:
        measured: for the gate.
        pictures: those of the verdict, with the float model's boxes; None without a decoder.
        detections: of the bundle, per picture; None without a decoder.
        messages: remarks on the labels, e.g. categories without a class.
    """

    measured: Measured
    pictures: VerdictSet | None
    detections: tuple[Detections, ...] | None
    messages: tuple[str, ...] = ()


def verify(
    staged: Staged, chosen: Trial, context: BuildContext, *, plans: int, decided: Callable[[Measured], bool]
) -> Verified:
    """Detect with the bundle's own parts; compare with the float model, and with labels where given.

    Args:
        staged: the bundle.
        chosen: its candidate.
        context: the build.
        plans: number of plans that the search compared.
        decided: whether the answer is certain; while it is not, more pictures join.
    """
    bundle = open_bundle(staged.folder, allow_unaccepted=True, isa=instruction_set())
    bundle.verify()
    bare = _bare(chosen, context)
    if context.verdict is None:
        return Verified(bare, None, None)
    labels = labels_of(context.request, staged.manifest.class_names)
    detections: tuple[Detections, ...] = ()
    for pictures in context.verdict.stages(searched=plans > 1):
        detections += _detect(bundle, context, pictures.items[len(detections) :])
        measured = _measured(bare, pictures, detections, labels, plans if pictures.shared else 1)
        if decided(measured):
            break
    return Verified(measured, pictures, detections, remarks(labels, pictures.items) if labels else ())


def _bare(chosen: Trial, context: BuildContext) -> Measured:
    """Return what was measured without boxes."""
    # Without pictures the trial ran on drawn noise: its SQNR is no accuracy.
    sqnr_db = chosen.sqnr_db if context.recipe.data is not None else None
    return Measured(
        None,
        None,
        None,
        sqnr_db,
        chosen.latency,
        is_float=chosen.candidate.encoding == FLOAT,
        runs_in=chosen.runs_in,
    )


def _measured(
    bare: Measured, pictures: VerdictSet, detections: Sequence[Detections], labels: Labels | None, plans: int
) -> Measured:
    paths = [item.path for item in pictures.items]
    reference = pictures.float_detections
    return replace(
        bare,
        float_accuracy=accuracy(labels, paths, reference),
        accuracy=accuracy(labels, paths, detections),
        fidelity=fidelity(reference, detections),
        map_loss=map_loss(labels, paths, reference, detections, missed=missed_of(plans)),
        plans=plans,
    )


def _detect(bundle: OpenBundle, context: BuildContext, items: Sequence[Item]) -> tuple[Detections, ...]:
    request = context.request
    detector = detector_of(bundle, request.float_engines, families=request.families)
    try:
        return tuple(detector.detect(read_picture(item), score_threshold=SCORE_FLOOR) for item in items)
    finally:
        detector.close()
