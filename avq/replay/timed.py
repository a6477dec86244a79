"""An opened bundle whose stages take time on the replay clock, and are measured on the machine's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from avq.clock import Clock, ReplayClock, SystemClock
from avq.daemon.step import Decodes, Parts, Prepares
from avq.hookspecs import Session
from avq.replay.frames import FrameKey
from avq.replay.timing import TimingPlan
from avq.types import U8, Detections, Frame, ModelInput, RawOutputs, StageTimes


@dataclass
class Stopwatch:
    """Real nanoseconds of the frame under way, and of the engine in all."""

    key: FrameKey = ("", 0)
    preprocess_ns: int = 0
    infer_ns: int = 0
    decode_ns: int = 0
    engine_ns: int = 0

    @property
    def times(self) -> StageTimes:
        return StageTimes(0, self.preprocess_ns, self.infer_ns, self.decode_ns)


@dataclass(frozen=True)
class TimedStages:
    """Preprocessor, session and decoder in one: does the work, then moves the clock by what the plan says."""

    prepares: Prepares
    session: Session
    decodes: Decodes
    bundle: str
    plan: TimingPlan
    clock: ReplayClock
    watch: Stopwatch
    machine: Clock = field(default_factory=SystemClock)

    @property
    def engine(self) -> str:
        return self.session.engine

    @property
    def precision(self) -> str:
        return self.session.precision

    def prepare(self, picture: Frame | U8) -> ModelInput:
        before_ns = self.machine.now_ns()
        ready = self.prepares.prepare(picture)
        self.watch.preprocess_ns = self.machine.now_ns() - before_ns
        if isinstance(picture, Frame):
            self.watch.key = picture.camera, picture.seq
        self._pass("preprocess_ns")
        return ready

    def infer(self, tensor: U8) -> RawOutputs:
        before_ns = self.machine.now_ns()
        raw = self.session.infer(tensor)
        self.watch.infer_ns = self.machine.now_ns() - before_ns
        self.watch.engine_ns += self.watch.infer_ns
        self._pass("infer_ns")
        return raw

    def decode(
        self, raw: RawOutputs, model_input: ModelInput, *, camera: str, seq: int, t_capture_ns: int
    ) -> Detections:
        before_ns = self.machine.now_ns()
        seen = self.decodes.decode(raw, model_input, camera=camera, seq=seq, t_capture_ns=t_capture_ns)
        self.watch.decode_ns = self.machine.now_ns() - before_ns
        self._pass("decode_ns")
        return seen

    def run(self, feeds: Mapping[str, Any]) -> RawOutputs:
        return self.session.run(feeds)

    def close(self) -> None:
        self.session.close()

    def _pass(self, stage: str) -> None:
        measured = self.plan.kind == "measured"
        times = self.watch.times if measured else self.plan.of(self.watch.key, self.bundle)
        self.clock.advance_by(int(getattr(times, stage)))


def timed(parts: Parts, plan: TimingPlan, clock: ReplayClock, watch: Stopwatch) -> Parts:
    """``parts`` whose work takes the plan's time on ``clock``."""
    stages = TimedStages(
        parts.preprocessor, parts.session, parts.decoder, parts.bundle_digest, plan, clock, watch
    )
    return replace(parts, preprocessor=stages, session=stages, decoder=stages)
