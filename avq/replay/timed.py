"""An opened bundle whose stages take time on the replay clock, and are measured on the machine's.

Where the plan knows all times beforehand, no decision waits for a box: pictures are prepared on the threads that
decode them, boxes are decoded on one of their own, and the engine is never kept waiting by either.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from avq.clock import ReplayClock, SystemClock
from avq.daemon.step import Decodes, Parts, Prepares
from avq.hookspecs import Session
from avq.preprocess import Preprocessor
from avq.replay.frames import FrameKey
from avq.replay.timing import TimingPlan
from avq.types import U8, Detections, Frame, ModelInput, PreprocessSpec, RawOutputs, StageTimes

#: Raw outputs that may wait to be decoded.
_BEHIND = 16
_MACHINE = SystemClock()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A network input made ahead, for bundles of that preprocessing."""

    spec: PreprocessSpec
    model_input: ModelInput
    spent_ns: int


class PrepareAhead:
    """Network inputs of pictures, on any number of threads."""

    def __init__(self, spec: PreprocessSpec) -> None:
        self._spec = spec
        self._mine = threading.local()

    def __call__(self, pixels: U8) -> Prepared:
        if not hasattr(self._mine, "preprocessor"):
            self._mine.preprocessor = Preprocessor(self._spec)
        before_ns = _MACHINE.now_ns()
        made = self._mine.preprocessor.prepare(pixels, copy=True)
        return Prepared(self._spec, made, _MACHINE.now_ns() - before_ns)


@dataclass
class Measured:
    """One frame's real nanoseconds, and its boxes when they are decoded."""

    preprocess_ns: int = 0
    infer_ns: int = 0
    decoded: Future[tuple[Detections, int]] | None = None
    decode_ns: int = 0

    def times(self) -> StageTimes:
        return StageTimes(0, self.preprocess_ns, self.infer_ns, self.decode_ns)


class Stages:
    """What the stages of all modes share: the clock, the plan, and what was measured frame by frame.

    Attributes:
        made: inputs prepared ahead, by frame; put here when a frame is offered.
        measured: per processed frame, in order.
    """

    def __init__(self, plan: TimingPlan, clock: ReplayClock) -> None:
        self.plan, self.clock = plan, clock
        self.made: dict[FrameKey, Prepared] = {}
        self.measured: list[Measured] = []
        self.key: FrameKey = ("", 0)
        self._behind: deque[Future[tuple[Detections, int]]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="avq-boxes")

    @property
    def in_advance(self) -> bool:
        """The clock does not need to see how long a stage takes."""
        return self.plan.kind != "measured"

    @property
    def engine_ns(self) -> int:
        return sum(row.infer_ns for row in self.measured)

    def started(self, frame: Frame) -> Prepared | None:
        """Another frame is being served; older ones of its camera never will be."""
        self.key = frame.camera, frame.seq
        self.measured.append(Measured())
        made = self.made.get(self.key)
        self.made = {k: v for k, v in self.made.items() if k[0] != frame.camera or k[1] > frame.seq}
        return made

    def passes(self, bundle: str, stage: str, measured_ns: int) -> None:
        """A stage is done: the clock moves by the plan."""
        planned = getattr(self.plan.of(self.key, bundle), stage) if self.in_advance else measured_ns
        self.clock.advance_by(int(planned))

    def later(self, decodes: Decodes, raw: RawOutputs, model_input: ModelInput, **frame: Any) -> Detections:
        """Decode on the other thread; the message goes out with an empty place for the boxes."""
        borrowed = {name: array.copy() for name, array in raw.items()}
        future = self._pool.submit(_decoded, decodes, borrowed, model_input, frame)
        self.measured[-1].decoded = future
        self._behind.append(future)
        if len(self._behind) > _BEHIND:
            self._behind.popleft().result()
        return Detections.none(**frame)

    def boxes(self, index: int, seen: Detections) -> Detections:
        """The boxes of the ``index``-th processed frame; its decoding time is known from here on."""
        row = self.measured[index]
        if row.decoded is None:
            return seen
        boxes, row.decode_ns = row.decoded.result()
        return boxes

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _decoded(
    decodes: Decodes, raw: RawOutputs, model_input: ModelInput, frame: Mapping[str, Any]
) -> tuple[Detections, int]:
    before_ns = _MACHINE.now_ns()
    boxes = decodes.decode(raw, model_input, **frame)
    return boxes, _MACHINE.now_ns() - before_ns


@dataclass(frozen=True)
class TimedStages:
    """Preprocessor, session and decoder in one: does the work, then moves the clock by what the plan says."""

    prepares: Prepares
    session: Session
    decodes: Decodes
    bundle: str
    stages: Stages

    @property
    def engine(self) -> str:
        return self.session.engine

    @property
    def precision(self) -> str:
        return self.session.precision

    def prepare(self, picture: Frame | U8) -> ModelInput:
        made = self.stages.started(picture) if isinstance(picture, Frame) else None
        if made is not None and made.spec == getattr(self.prepares, "spec", None):
            ready, spent_ns = made.model_input, made.spent_ns
        else:
            before_ns = _MACHINE.now_ns()
            ready = self.prepares.prepare(picture)
            spent_ns = _MACHINE.now_ns() - before_ns
        self.stages.measured[-1].preprocess_ns = spent_ns
        self.stages.passes(self.bundle, "preprocess_ns", spent_ns)
        return ready

    def infer(self, tensor: U8) -> RawOutputs:
        before_ns = _MACHINE.now_ns()
        raw = self.session.infer(tensor)
        spent_ns = self.stages.measured[-1].infer_ns = _MACHINE.now_ns() - before_ns
        self.stages.passes(self.bundle, "infer_ns", spent_ns)
        return raw

    def decode(
        self, raw: RawOutputs, model_input: ModelInput, *, camera: str, seq: int, t_capture_ns: int
    ) -> Detections:
        frame = {"camera": camera, "seq": seq, "t_capture_ns": t_capture_ns}
        if self.stages.in_advance:
            seen = self.stages.later(self.decodes, raw, model_input, **frame)
            self.stages.passes(self.bundle, "decode_ns", 0)
            return seen
        seen, spent_ns = _decoded(self.decodes, raw, model_input, frame)
        self.stages.measured[-1].decode_ns = spent_ns
        self.stages.passes(self.bundle, "decode_ns", spent_ns)
        return seen

    def run(self, feeds: Mapping[str, Any]) -> RawOutputs:
        return self.session.run(feeds)

    def close(self) -> None:
        self.session.close()


def timed(parts: Parts, stages: Stages) -> Parts:
    """``parts`` whose work takes the plan's time."""
    own = TimedStages(parts.preprocessor, parts.session, parts.decoder, parts.bundle_digest, stages)
    return replace(parts, preprocessor=own, session=own, decoder=own)
