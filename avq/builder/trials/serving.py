"""Serve plans as candidates: open them on their engines, check them, time them against each other.

A file that is right in one runtime can be wrong in another, so each candidate is compared with the unoptimised
reference run of the same plan. `Serving` compares many plans, each on its fastest right engine, with the fastest
float engine in every round; ``bench.try_engines`` compares every engine on one plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import onnx

from avq.builder.answers import boxes_answer
from avq.builder.graph.model import FloatModel
from avq.builder.holdout import LOW_SCORE_FLOOR, SCORE_FLOOR, HoldoutSet, ModelOutputs
from avq.builder.lower import lower
from avq.builder.request import Request
from avq.builder.trials.layer_times import by_node
from avq.clock import Clock
from avq.errors import AvqError
from avq.hookspecs import ProfilingEngine, Session
from avq.measure.latency import LatencySamples, ProcessorClock, latency_of, paired_latency, ratio_interval
from avq.types import (
    U8,
    Detections,
    EnginePrecision,
    Fidelity,
    Latency,
    LayerTime,
    MeasuredPlan,
    PlanScore,
    QuantizationPlan,
    SessionOptions,
)

T = TypeVar("T")
# Each open session holds a copy of the weights and scratch memory.
_OPEN_AT_ONCE, _OPENERS = 6, 2
_SORTING_ROUNDS = 12
_SERVE_ROUNDS = 100
# Opening takes longer than running; more rounds do not even out the memory layout of one session.
_QUICK_ROUNDS, _COUNTED_ROUNDS = 20, 12
# Sessions of one model differ by a percent: the float time is the median of several.
_FLOAT_SESSIONS = 4
_ANCHOR = "float"


# Rounding may differ from the reference, detections may not.
MAX_DEVIATION_LOST = 0.01
MAX_DEVIATION_SHIFT = 0.02
MIN_FLOAT_SQNR_DB = 25.0
# Rounding flips leave right engines at 26 dB or more from the reference; wrong S8 kernels of OpenVINO at 11 to 14.
MIN_REFERENCE_SQNR_DB = 20.0
FLOAT = "float"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to serve a plan.

    Attributes:
        encoding: "float", "s8", "u8" or "asymmetric".
        precision: of the float parts.
    """

    engine: str
    encoding: str
    precision: EnginePrecision

    @property
    def label(self) -> str:
        return f"{self.engine} {self.encoding} {self.precision}"

    @property
    def as_float(self) -> Candidate:
        """The float model on the same engine, in the same precision."""
        return Candidate(self.engine, FLOAT, self.precision)


@dataclass(frozen=True, slots=True)
class Trial:
    """Result of one candidate.

    Attributes:
        runs_in: precision that the engine reports.
        deviation: its boxes against the unoptimised reference of the same model; None without a decoder.
        sqnr_db: of its worst output, against the float model.
        right: its outputs agree with the reference.
        why: one line: the deviation, or why it could not be opened.
        latency: paired with the fastest float engine; None when excluded.
    """

    candidate: Candidate
    runs_in: str = ""
    deviation: Fidelity | None = None
    sqnr_db: float | None = None
    right: bool = False
    why: str = ""
    latency: Latency | None = None

    @property
    def label(self) -> str:
        """Engine, precision and encoding as the engine runs it: "openvino int8+f32 asymmetric"."""
        candidate = self.candidate
        if candidate.encoding == FLOAT or not self.runs_in:
            return candidate.label
        return f"{candidate.engine} {self.runs_in} {candidate.encoding}"

    def row(self) -> dict[str, object]:
        """Return one row of the table of engines."""
        latency = self.latency
        return {
            "engine": self.candidate.engine,
            "encoding": self.candidate.encoding,
            "runs in": self.runs_in or "-",
            "right": self.right,
            "p50 ms": round(latency.p50_ms, 2) if latency else "-",
            "time / float": f"{latency.ratio:.2f} [{latency.ratio_low:.2f}, {latency.ratio_high:.2f}]"
            if latency
            else "-",
            "against its reference": self.why,
        }


def candidates_for(request: Request, plan: QuantizationPlan) -> list[Candidate]:
    """Return float on every installed engine, the base of all times; then the plan on the target's engines."""
    floats = [
        Candidate(engine.name, FLOAT, precision)
        for engine in request.float_engines.values()
        for precision in engine.float_precisions
    ]
    if not plan.points:
        return floats
    usable = ("s8", "u8") if plan.symmetric else ("asymmetric",)
    return floats + [
        Candidate(engine.name, encoding, precision)
        for engine in request.engines.values()
        for encoding in engine.encodings()
        if encoding in usable
        for precision in engine.float_precisions
    ]


def agrees(deviation: Fidelity | None, sqnr_db: float, reference_sqnr_db: float) -> tuple[bool, str]:
    """Compare an engine with the reference: by boxes where there are any, else by noise.

    Returns:
        Whether they agree, and one line with the numbers.
    """
    if deviation is not None and deviation.boxes:
        lost = round(deviation.lost * deviation.boxes)
        # Rounding moves single boxes over a threshold: more than a true share of 1 % explains (99 %) is wrong.
        expected = MAX_DEVIATION_LOST * deviation.boxes
        right = lost <= 1 + expected + 2.33 * math.sqrt(expected)
        right = right and abs(deviation.confidence_shift) <= MAX_DEVIATION_SHIFT
        return right, f"lost {lost} of {deviation.boxes}, shift {deviation.confidence_shift:+.4f}"
    floor = min(reference_sqnr_db - 3.0, MIN_FLOAT_SQNR_DB)
    return sqnr_db >= floor, f"SQNR {sqnr_db:.1f} dB, reference {reference_sqnr_db:.1f} dB"


def could_serve(precision: str, deviation: Fidelity | None) -> bool:
    """Whether a float engine that agrees with its reference is one that a float bundle would be served by.

    FP32 rounds; any other precision needs a yes on its boxes, as the gate gives it.

    Args:
        precision: of the float parts.
        deviation: its boxes against the float model's; None without a decoder.
    """
    if precision == "f32" or deviation is None:
        return True
    return boxes_answer(deviation, 100.0 * MAX_DEVIATION_LOST).answer == "yes"


def close_to_reference(sqnr_db: float) -> tuple[bool, str]:
    """Compare an engine's outputs with the reference's, where there are no boxes.

    A plan may be far from its float graph (few bits, a trained quantization) and still have one right output.
    """
    return sqnr_db >= MIN_REFERENCE_SQNR_DB, f"SQNR {sqnr_db:.1f} dB to the reference"


def serves(request: Request, candidate: Candidate, plan: QuantizationPlan) -> bool:
    """Whether the bundle may be served by ``candidate``: an engine of the target, float only without a plan."""
    return candidate.engine in request.engines and (candidate.encoding == FLOAT) == (not plan.points)


def model_for(proto: onnx.ModelProto, plan: QuantizationPlan, encoding: str) -> bytes:
    """Return the model of one encoding; FLOAT is the float model unchanged."""
    return bytes(proto.SerializeToString()) if encoding == FLOAT else lower(proto, plan, encoding)


def open_candidate(request: Request, candidate: Candidate, model: bytes) -> Session:
    """Open ``model`` on the candidate's engine. Raises AvqError where the engine rejects it."""
    return request.float_engines[candidate.engine].open(model, session_options(request, candidate))


def session_options(request: Request, candidate: Candidate) -> SessionOptions:
    """Return the options that the bundle is served with."""
    return SessionOptions(threads=request.recipe.threads, precision=candidate.precision)


def paired_samples(
    sessions: Mapping[str, Session], tensor: U8, rounds: int, clock: Clock | None = None
) -> dict[str, LatencySamples]:
    """Time the sessions in turns on one picture, (1, 3, h, w) uint8; samples by the same labels."""
    runs = {label: _runner(session, tensor) for label, session in sessions.items()}
    return dict(paired_latency(runs, rounds=rounds, clock=clock))


def paired_with(samples: LatencySamples, base: LatencySamples, base_label: str) -> Latency:
    """Return the latency of ``samples`` with its ratio to ``base``, round by round."""
    return latency_of(samples, base, ratio_interval(samples, base), base_label)


def _runner(session: Session, tensor: U8) -> Callable[[], object]:
    return lambda: session.infer(tensor)


@dataclass
class Serving:
    """Checks and times plans on the engines of one request.

    Attributes:
        request: engines, threads, target.
        model: the float model.
        holdout: pictures on which an engine is checked.
        reference_outputs: runs a plan in the unoptimised reference.
        map_drop: loss of mAP in percent of boxes from SCORE_FLOOR on; None without labels.
    """

    request: Request
    model: FloatModel
    holdout: HoldoutSet
    reference_outputs: Callable[[QuantizationPlan], ModelOutputs]
    map_drop: Callable[[Sequence[Detections]], float] | None = None
    _checked: dict[str, tuple[Candidate, PlanScore] | None] = field(default_factory=dict)
    _fastest_float: Candidate | None = None
    _favourite: Candidate | None = None

    def serve(self, plans: Sequence[QuantizationPlan]) -> list[MeasuredPlan | None]:
        """Measure each plan on its fastest right engine; None where no engine is right."""
        choices = [self._choose(plan) for plan in plans]
        times = self._times(plans, [choice and choice[0] for choice in choices], _SERVE_ROUNDS)
        return [
            None if choice is None or time is None else MeasuredPlan(choice[0].label, choice[1], time)
            for choice, time in zip(choices, times, strict=True)
        ]

    def latencies(
        self, plans: Sequence[QuantizationPlan], clock: Clock | None = None
    ) -> list[Latency | None]:
        """Time plans, unchecked, on the engine that served the last quantized plan.

        Without ``clock``, one thread is timed in processor time, which excludes the load of other programs.
        Several threads wait for each other and are timed by the wall clock.
        """
        if clock is None and self.request.recipe.threads == 1:
            clock = ProcessorClock()
        return self._times(plans, [self._engine_for(plan) for plan in plans], _QUICK_ROUNDS, clock)

    def layer_times(self, plans: Sequence[QuantizationPlan]) -> list[Mapping[str, int]] | None:
        """Return nanoseconds per node of the float graph, taking turns; None where the engine does not profile."""
        candidates = [self._engine_for(plan) for plan in plans]
        known = [c for c in candidates if c is not None]
        engine = self.request.float_engines[known[0].engine] if known else None
        if not isinstance(engine, ProfilingEngine) or len(known) < len(plans):
            return None
        tensor, options = self.holdout.inputs[0].tensor, session_options(self.request, known[0])
        layers: list[Sequence[LayerTime]] = []
        for some in _chunks(list(zip(plans, known, strict=True))):
            models = [self._content(plan, candidate) for plan, candidate in some]
            try:
                layers += engine.layer_times(models, options, tensor, rounds=_COUNTED_ROUNDS)
            except AvqError:
                return None
        return [by_node(times, self.model.view) for times in layers]

    def _engine_for(self, plan: QuantizationPlan) -> Candidate | None:
        """Return the favourite's engine and precision, also for the float plan that is compared with it."""
        favourite = self._favourite
        if favourite is None or plan.points:
            return favourite
        return Candidate(favourite.engine, FLOAT, favourite.precision)

    def _choose(self, plan: QuantizationPlan) -> tuple[Candidate, PlanScore] | None:
        if plan.digest not in self._checked:
            candidates = [c for c in candidates_for(self.request, plan) if serves(self.request, c, plan)]
            ranked = self._fastest_first(plan, candidates)
            checked = (self._check(plan, candidate) for candidate in ranked)
            self._checked[plan.digest] = next((entry for entry in checked if entry is not None), None)
        entry = self._checked[plan.digest]
        if entry is not None and plan.points:
            self._favourite = self._with_fast_floats(entry[0])
        return entry

    def _with_fast_floats(self, candidate: Candidate) -> Candidate:
        """Return the candidate in the fastest float precision where that is on the same engine."""
        fastest = self._anchor()
        same_engine = fastest.engine == candidate.engine
        return replace(candidate, precision=fastest.precision) if same_engine else candidate

    def _fastest_first(self, plan: QuantizationPlan, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates that open, by their time."""
        tensor = self.holdout.inputs[0].tensor
        with ExitStack() as stack:
            sessions = self._try_open_all([(plan, c) for c in candidates], stack)
            opened = {c: s for c, s in zip(candidates, sessions, strict=True) if s is not None}
            if not opened:
                return []
            samples = paired_samples({c.label: s for c, s in opened.items()}, tensor, _SORTING_ROUNDS)
        return sorted(opened, key=lambda c: samples[c.label].p50_ms)

    def _check(self, plan: QuantizationPlan, candidate: Candidate) -> tuple[Candidate, PlanScore] | None:
        reference = self.reference_outputs(plan)
        with ExitStack() as stack:
            session = self._try_open(plan, candidate, stack)
            try:
                outputs = None if session is None else self.holdout.run(session, floor=self._floor)
            except AvqError:
                return None
        if outputs is None:
            return None
        deviation = self.holdout.compare(reference.detections, outputs.detections)
        right, _ = agrees(deviation, outputs.worst_sqnr_db, reference.worst_sqnr_db)
        return (candidate, self._score(outputs)) if right else None

    @property
    def _floor(self) -> float:
        """Metrics against labels integrate over the score: they need the boxes with low scores too."""
        return LOW_SCORE_FLOOR if self.map_drop is None else SCORE_FLOOR

    def _score(self, outputs: ModelOutputs) -> PlanScore:
        score = self.holdout.score(outputs)
        if self.map_drop is None or outputs.detections is None:
            return score
        return replace(score, map_drop_percent=self.map_drop(outputs.detections))

    def _times(
        self,
        plans: Sequence[QuantizationPlan],
        candidates: Sequence[Candidate | None],
        rounds: int,
        clock: Clock | None = None,
    ) -> list[Latency | None]:
        """Time a few plans at once, all against the same float sessions."""
        times: list[Latency | None] = [None] * len(plans)
        todo = [(i, plans[i], c) for i, c in enumerate(candidates) if c is not None]
        if not todo:
            return times
        with ExitStack() as stack:
            floats = [self._open(self._float_plan, self._anchor(), stack) for _ in range(_FLOAT_SESSIONS)]
            for some in _chunks(todo):
                for index, latency in self._times_together(some, floats, rounds, clock):
                    times[index] = latency
        return times

    def _times_together(
        self,
        todo: Sequence[tuple[int, QuantizationPlan, Candidate]],
        floats: Sequence[Session],
        rounds: int,
        clock: Clock | None,
    ) -> list[tuple[int, Latency]]:
        tensor = self.holdout.inputs[0].tensor
        with ExitStack() as stack:
            opened = self._try_open_all([(plan, candidate) for _, plan, candidate in todo], stack)
            sessions = {
                str(index): session
                for (index, _, _), session in zip(todo, opened, strict=True)
                if session is not None
            }
            anchors = {f"{_ANCHOR} {i}": session for i, session in enumerate(floats)}
            samples = paired_samples({**sessions, **anchors}, tensor, rounds, clock)
        base, label = _median([samples[anchor] for anchor in anchors]), self._anchor().label
        return [(int(index), paired_with(samples[index], base, label)) for index in sessions]

    def _anchor(self) -> Candidate:
        if self._fastest_float is None:
            ranked = self._fastest_first(self._float_plan, candidates_for(self.request, self._float_plan))
            right = (candidate for candidate in ranked if self._is_rival(candidate))
            self._fastest_float = next(right, ranked[0])
        return self._fastest_float

    def _is_rival(self, candidate: Candidate) -> bool:
        checked = self._check(self._float_plan, candidate)
        return checked is not None and could_serve(candidate.precision, checked[1].fidelity)

    @property
    def _float_plan(self) -> QuantizationPlan:
        return QuantizationPlan(graph_digest=self.model.view.digest)

    def _try_open_all(
        self, pairs: Sequence[tuple[QuantizationPlan, Candidate]], stack: ExitStack
    ) -> list[Session | None]:
        """Open in parallel: compiling takes longer than all runs, and runtimes release Python's lock for it."""
        with ThreadPoolExecutor(min(_OPENERS, self.request.probe_threads)) as openers:
            return list(openers.map(lambda pair: self._try_open(pair[0], pair[1], stack), pairs))

    def _try_open(self, plan: QuantizationPlan, candidate: Candidate, stack: ExitStack) -> Session | None:
        try:
            return self._open(plan, candidate, stack)
        except AvqError:
            return None

    def _open(self, plan: QuantizationPlan, candidate: Candidate, stack: ExitStack) -> Session:
        session = open_candidate(self.request, candidate, self._content(plan, candidate))
        stack.callback(session.close)
        return session

    def _content(self, plan: QuantizationPlan, candidate: Candidate) -> bytes:
        return model_for(self.model.proto, plan, candidate.encoding)


def _chunks(todo: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(todo), _OPEN_AT_ONCE):
        yield todo[start : start + _OPEN_AT_ONCE]


def _median(alike: Sequence[LatencySamples]) -> LatencySamples:
    """Return the median of sessions of one model, round by round."""
    return LatencySamples(np.median([samples.ns for samples in alike], axis=0).astype(np.int64))
