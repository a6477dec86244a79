"""Held-out pictures with the float model's outputs: the reference of every plan and engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from avq.builder.frontend.analyse import ModelAnalysis
from avq.builder.pictures.dataset import Item, read_picture
from avq.builder.request import Request
from avq.decoders import DetectionDecoder
from avq.errors import ModelError, RefusedError
from avq.hookspecs import Session
from avq.measure.fidelity import FIRM_SCORE, SqnrMeter, fidelity
from avq.preprocess import Preprocessor
from avq.types import (
    AnyArray,
    Detections,
    Fidelity,
    ModelInput,
    PlanScore,
    PreprocessSpec,
    RawOutputs,
    SessionOptions,
)

# Drawn pictures for builds without data: enough to time an engine and to prove an import, not for accuracy.

_SEED = 20
_COARSE_PX = 9


def drawn_inputs(spec: PreprocessSpec, count: int) -> tuple[ModelInput, ...]:
    """Draw network inputs, (1, 3, h, w) uint8: noise and smooth colour fields in turns, from a fixed seed."""
    rng = np.random.default_rng(_SEED)
    size_px = (spec.width_px, spec.height_px)
    return tuple(
        ModelInput(_noise(rng, size_px) if index % 2 else _field(rng, size_px), np.eye(2, 3), size_px)
        for index in range(count)
    )


def _noise(rng: np.random.Generator, size_px: tuple[int, int]) -> np.ndarray:
    return rng.integers(0, 256, (1, 3, size_px[1], size_px[0]), np.uint8)


def _field(rng: np.random.Generator, size_px: tuple[int, int]) -> np.ndarray:
    coarse = rng.integers(0, 256, (_COARSE_PX, _COARSE_PX, 3), np.uint8)
    smooth = cv2.resize(coarse, size_px, interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(smooth.transpose(2, 0, 1)[None])


# COCO metrics integrate over the score, so verification keeps nearly everything.
SCORE_FLOOR = 0.01
# Below half the score of confident boxes (>= 0.5), so every match is kept; suppression is much faster.
LOW_SCORE_FLOOR = 0.1
# Prepared inputs and float outputs are kept in memory; more pictures would not change a ranking of plans.
MAX_PICTURES = 100
MAX_BYTES = 256_000_000
_DRAWN = 4


@dataclass(frozen=True)
class ModelOutputs:
    """Outputs of one model on every held-out picture.

    Attributes:
        detections: per picture; None without a decoder.
        sqnr_db: per graph output, against the reference outputs.
    """

    detections: tuple[Detections, ...] | None
    sqnr_db: Mapping[str, float]

    @property
    def worst_sqnr_db(self) -> float:
        """SQNR of the noisiest output; 0 without outputs."""
        return min(self.sqnr_db.values(), default=0.0)


@dataclass(frozen=True)
class HoldoutSet:
    """Pictures on which plans and engines are compared; held-out ones first.

    Attributes:
        items: picture files.
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

    def require_boxes(self) -> None:
        """Raise RefusedError when the float model has no confident box: then no loss can be measured."""
        if self.float_detections is None or any(len(b.above(FIRM_SCORE)) for b in self.float_detections):
            return
        best = max((float(b.scores.max(initial=0.0)) for b in self.float_detections), default=0.0)
        raise RefusedError(
            f"nothing to compare: the float model has no box with score >= {FIRM_SCORE:g}",
            seen=f"{len(self.items)} pictures, best score {best:.2f}",
            fix="give pictures of what the model detects (--data) or its own preprocessing (--preprocess); "
            "--no-gate builds without judging",
        )

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(item.path for item in self.items)

    def first(self, pictures: int) -> HoldoutSet:
        """Return the set with at most that many pictures."""
        boxes = self.float_detections
        return replace(
            self,
            items=self.items[:pictures],
            inputs=self.inputs[:pictures],
            float_outputs=self.float_outputs[:pictures],
            float_detections=None if boxes is None else boxes[:pictures],
        )

    def joined(self, other: HoldoutSet) -> HoldoutSet:
        """Return the pictures of both, at most MAX_PICTURES."""
        boxes, more = self.float_detections, other.float_detections
        both = replace(
            self,
            items=self.items + other.items,
            inputs=self.inputs + other.inputs,
            float_outputs=self.float_outputs + other.float_outputs,
            float_detections=None if boxes is None or more is None else boxes + more,
        )
        return both.first(MAX_PICTURES)

    def run(
        self, session: Session, *, floor: float = LOW_SCORE_FLOOR, picture: str = "", threads: int = 1
    ) -> ModelOutputs:
        """Run every picture through ``session``.

        Args:
            session: a runtime session of one model.
            floor: lowest score of the boxes.
            picture: name of the model's input, for more than one thread.
            threads: pictures in parallel, where the session's ``run`` allows it (the reference's does).

        Returns:
            The boxes, and the noise against the float outputs.
        """
        meter, detections = SqnrMeter(), []
        results = _raw_outputs(session, self.inputs, picture, threads)
        for model_input, reference, raw in zip(self.inputs, self.float_outputs, results, strict=True):
            meter.add(reference, raw)
            if self.decoder is not None:
                detections.append(self.decoder.decode(raw, model_input, score_threshold=floor))
        return ModelOutputs(tuple(detections) if self.decoder is not None else None, meter.result_db())

    def with_reference(self, session: Session) -> HoldoutSet:
        """Return the same pictures with ``session``'s raw outputs in place of the float model's."""
        outputs = tuple(
            {name: np.array(value) for name, value in session.infer(model_input.tensor).items()}
            for model_input in self.inputs
        )
        return replace(self, float_outputs=outputs)

    def score(self, outputs: ModelOutputs) -> PlanScore:
        """Compare ``outputs`` with the float model's."""
        return PlanScore(self.compare(self.float_detections, outputs.detections), outputs.sqnr_db)

    def compare(
        self, reference: Sequence[Detections] | None, detections: Sequence[Detections] | None
    ) -> Fidelity | None:
        """Compute lost boxes and confidence shift of ``detections``; None without a decoder."""
        if reference is None or detections is None:
            return None
        return fidelity(reference, detections, with_map=False)


def _raw_outputs(
    session: Session, inputs: Sequence[ModelInput], picture: str, threads: int
) -> Iterator[RawOutputs]:
    """Yield outputs in order. Threads of one run wait for each other at every layer; pictures do not."""
    if threads < 2:
        yield from (session.infer(model_input.tensor) for model_input in inputs)
        return
    pending = deque[Future[RawOutputs]]()
    with ThreadPoolExecutor(threads) as runners:
        for model_input in inputs:
            pending.append(runners.submit(session.run, {picture: model_input.tensor}))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def drawn_holdout(request: Request, analysis: ModelAnalysis) -> HoldoutSet:
    """Draw pictures: engines are compared and timed on them, accuracy is not."""
    options = SessionOptions(threads=request.probe_threads, optimise=False)
    session = request.reference.open(analysis.model.proto.SerializeToString(), options)
    inputs = drawn_inputs(analysis.spec, _DRAWN)
    try:
        return HoldoutSet((), inputs, None, (), None).with_reference(session)
    finally:
        session.close()


class HoldoutBuilder:
    """Collects pictures with the float model's outputs."""

    def __init__(
        self, preprocessor: Preprocessor, session: Session, decoder: DetectionDecoder | None
    ) -> None:
        self._preprocessor, self._session, self._decoder = preprocessor, session, decoder
        self._items: list[Item] = []
        self._inputs: list[ModelInput] = []
        self._outputs: list[Mapping[str, AnyArray]] = []
        self._boxes: list[Detections] = []
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        """Whether the limit of pictures, or of memory for inputs and outputs, is reached."""
        return len(self._items) >= MAX_PICTURES or self._bytes >= MAX_BYTES

    @property
    def confident_boxes(self) -> int:
        return sum(len(boxes.above(FIRM_SCORE)) for boxes in self._boxes)

    def detect(self, item: Item) -> Detections:
        """Return the float model's boxes of a picture that does not join; needs a decoder."""
        assert self._decoder is not None
        model_input = self._preprocessor.prepare(read_picture(item))
        raw = self._session.infer(model_input.tensor)
        _require_finite(raw, item.path)
        return self._decoder.decode(raw, model_input, score_threshold=SCORE_FLOOR)

    def add(self, item: Item) -> None:
        model_input = self._preprocessor.prepare(read_picture(item), copy=True)
        raw = {name: np.array(value) for name, value in self._session.infer(model_input.tensor).items()}
        _require_finite(raw, item.path)
        self._items.append(item)
        self._inputs.append(model_input)
        self._outputs.append(raw)
        self._bytes += model_input.tensor.nbytes + sum(value.nbytes for value in raw.values())
        if self._decoder is not None:
            self._boxes.append(self._decoder.decode(raw, model_input, score_threshold=SCORE_FLOOR))

    def build(self) -> HoldoutSet:
        boxes = tuple(self._boxes) if self._decoder is not None else None
        return HoldoutSet(tuple(self._items), tuple(self._inputs), self._decoder, tuple(self._outputs), boxes)


def _require_finite(raw: RawOutputs, picture: Path) -> None:
    for name, value in raw.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ModelError(
                f"the float model outputs NaN or Inf on {picture.name}",
                seen=f"output '{name}', {int((~np.isfinite(value)).sum())} of {value.size} values",
                fix="check the preprocessing (--preprocess) and the model file: the float model itself is broken",
            )
