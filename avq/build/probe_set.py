"""Held-out pictures with the float model's answers: what every plan and engine is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avq.build.dataset import CalibrationSet, Item, read_picture
from avq.build.frontend import Understood
from avq.build.request import Request
from avq.decoders import DetectionDecoder
from avq.errors import ModelError
from avq.hookspecs import Session
from avq.measure.fidelity import fidelity
from avq.measure.sqnr import SqnrMeter
from avq.preprocess import Preprocessor
from avq.progress import Reporter
from avq.types import (
    AnyArray,
    Detections,
    Fidelity,
    ModelInput,
    PlanScore,
    RawOutputs,
    SessionOptions,
)

# Boxes below this score can neither lose a box (>= 0.5, half the score) nor matter to COCO metrics.
SCORE_FLOOR = 0.01
# Prepared inputs and float outputs are kept in memory; more pictures would not change a ranking of plans.
MAX_PICTURES = 100


@dataclass(frozen=True)
class Answers:
    """One model's outputs on every picture of a probe set."""

    detections: tuple[Detections, ...] | None
    sqnr_db: Mapping[str, float]

    @property
    def worst_sqnr_db(self) -> float:
        """Of the noisiest output, against the float model."""
        return min(self.sqnr_db.values(), default=0.0)


@dataclass(frozen=True)
class ProbeSet:
    """Pictures no range was made from.

    Attributes:
        items: picture files, in digest order.
        inputs: prepared network inputs, one per picture.
        decoder: None for models without a decoded head.
        float_outputs: the float model's raw outputs, per picture.
        float_detections: its boxes with score >= SCORE_FLOOR; None without a decoder.
    """

    items: tuple[Item, ...]
    inputs: tuple[ModelInput, ...]
    decoder: DetectionDecoder | None
    float_outputs: tuple[Mapping[str, AnyArray], ...]
    float_detections: tuple[Detections, ...] | None

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(item.path for item in self.items)

    def ask(self, session: Session) -> Answers:
        """Run every picture through ``session``; boxes, and noise against the float outputs."""
        meter, found = SqnrMeter(), []
        for model_input, reference in zip(self.inputs, self.float_outputs, strict=True):
            raw = session.infer(model_input.tensor)
            meter.add(reference, raw)
            if self.decoder is not None:
                found.append(self.decoder.decode(raw, model_input, score_threshold=SCORE_FLOOR))
        return Answers(tuple(found) if self.decoder is not None else None, meter.result_db())

    def score(self, session: Session) -> PlanScore:
        """How far ``session`` is from the float model."""
        answers = self.ask(session)
        return PlanScore(self.compare(self.float_detections, answers.detections), answers.sqnr_db)

    def compare(
        self, reference: Sequence[Detections] | None, found: Sequence[Detections] | None
    ) -> Fidelity | None:
        """Lost boxes and confidence shift of ``found`` against ``reference``; None without a decoder."""
        if reference is None or found is None:
            return None
        return fidelity(reference, found, with_map=False)


def prepare_probe_set(
    request: Request, understood: Understood, pictures: CalibrationSet, report: Reporter
) -> ProbeSet:
    """Read, prepare and run the float model once over ``pictures``, at most MAX_PICTURES of them.

    Raises ModelError when the float model answers with NaN or Inf.
    """
    items = pictures.items[:MAX_PICTURES]
    preprocessor = Preprocessor(understood.spec)
    decode = DetectionDecoder(understood.decoder) if understood.decoder.family != "none" else None
    options = SessionOptions(threads=request.probe_threads, optimise=False)
    session = request.reference.open(understood.model.proto.SerializeToString(), options)
    inputs, outputs, boxes = [], [], []
    try:
        for item in report.track(items, "float answers", len(items)):
            model_input = preprocessor.prepare(read_picture(item), copy=True)
            raw = {name: np.array(value) for name, value in session.infer(model_input.tensor).items()}
            _require_finite(raw, item.path)
            inputs.append(model_input)
            outputs.append(raw)
            if decode is not None:
                boxes.append(decode.decode(raw, model_input, score_threshold=SCORE_FLOOR))
    finally:
        session.close()
    found = tuple(boxes) if decode is not None else None
    return ProbeSet(items, tuple(inputs), decode, tuple(outputs), found)


def _require_finite(raw: RawOutputs, picture: Path) -> None:
    for name, value in raw.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ModelError(
                f"the float model answers with NaN or Inf on {picture.name}",
                seen=f"output '{name}', {int((~np.isfinite(value)).sum())} of {value.size} values",
                fix="check the preprocessing (--preprocess) and the model file: the float model itself is broken",
            )
