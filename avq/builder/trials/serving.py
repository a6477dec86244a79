"""Plans as they will be served: opened, checked on their own engine, timed against each other.

``Bench`` tries every engine on one plan; this compares many plans, each on its fastest right engine, with the
fastest float engine in every round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import onnx

from avq.builder.holdout import LOOK_FLOOR, SCORE_FLOOR, HoldoutSet, ModelOutputs
from avq.builder.lower import lower
from avq.builder.request import Request
from avq.builder.trials.bench import FLOAT, Candidate, agrees, candidates_for
from avq.builder.trials.layer_times import by_node
from avq.clock import Clock
from avq.errors import AvqError
from avq.hookspecs import ProfilingEngine, Session
from avq.measure.latency import LatencySamples, ProcessorClock, paired_latency, ratio_interval
from avq.types import (
    Detections,
    GraphView,
    Latency,
    LayerTime,
    MeasuredPlan,
    PlanScore,
    QuantizationPlan,
    SessionOptions,
)

T = TypeVar("T")
# Open sessions hold a copy of the weights and their scratch memory each.
_OPEN_AT_ONCE, _OPENERS = 6, 2
_SORTING_ROUNDS = 12
_SERVE_ROUNDS = 100
# Opening costs more than running, and one session's luck with its memory is not mended by more rounds.
_QUICK_ROUNDS, _COUNTED_ROUNDS = 20, 12
# Building the same model again gives a session a percent faster or slower: float is the median of some.
_FLOAT_SESSIONS = 4
_ANCHOR = "float"


@dataclass
class Serving:
    """Times and checks of plans on the engines of one request.

    Attributes:
        request: engines, threads, target.
        proto, graph: the float model.
        holdout: pictures an engine is checked on.
        reference_answers: what the plan means, from the unoptimised reference.
        map_drop: loss of mAP in percent of boxes from SCORE_FLOOR on; None without labels.
    """

    request: Request
    proto: onnx.ModelProto
    graph: GraphView
    holdout: HoldoutSet
    reference_answers: Callable[[QuantizationPlan], ModelOutputs]
    map_drop: Callable[[Sequence[Detections]], float] | None = None
    _checked: dict[str, tuple[Candidate, PlanScore] | None] = field(default_factory=dict)
    _fastest_float: Candidate | None = None
    _favourite: Candidate | None = None

    def serve(self, plans: Sequence[QuantizationPlan]) -> list[MeasuredPlan | None]:
        """Each plan on its fastest right engine; None where no engine is right."""
        found = [self._choose(plan) for plan in plans]
        open_with = [None if entry is None else entry[0] for entry in found]
        times = self._times(plans, open_with, _SERVE_ROUNDS)
        return [
            None if entry is None or time is None else MeasuredPlan(entry[0].label, entry[1], time)
            for entry, time in zip(found, times, strict=True)
        ]

    def latencies(
        self, plans: Sequence[QuantizationPlan], clock: Clock | None = None
    ) -> list[Latency | None]:
        """Unchecked times on the engine that served the last quantized plan.

        Without ``clock``, of one thread on the processor: what else runs on the machine is no part of a
        plan's price. Several threads wait for each other, so theirs are by the wall.
        """
        if clock is None and self.request.recipe.threads == 1:
            clock = ProcessorClock()
        return self._times(plans, [self._engine_for(plan) for plan in plans], _QUICK_ROUNDS, clock)

    def layer_times(self, plans: Sequence[QuantizationPlan]) -> list[Mapping[str, int]] | None:
        """Nanoseconds per node of the float graph, taking turns, where the engine tells them."""
        candidates = [self._engine_for(plan) for plan in plans]
        known = [c for c in candidates if c is not None]
        engine = self.request.float_engines[known[0].engine] if known else None
        if not isinstance(engine, ProfilingEngine) or len(known) < len(plans):
            return None
        tensor, options = self.holdout.inputs[0].tensor, self._options(known[0])
        layers: list[Sequence[LayerTime]] = []
        for some in _chunks(list(zip(plans, known, strict=True))):
            models = [self._model(plan, candidate) for plan, candidate in some]
            try:
                layers += engine.layer_times(models, options, tensor, rounds=_COUNTED_ROUNDS)
            except AvqError:
                return None
        return [by_node(found, self.graph) for found in layers]

    def _engine_for(self, plan: QuantizationPlan) -> Candidate | None:
        """The favourite's engine and precision, also for the float plan that is compared with it."""
        favourite = self._favourite
        if favourite is None or plan.points:
            return favourite
        return Candidate(favourite.engine, FLOAT, favourite.precision)

    def _choose(self, plan: QuantizationPlan) -> tuple[Candidate, PlanScore] | None:
        if plan.digest not in self._checked:
            candidates = [c for c in candidates_for(self.request, plan) if self._serves(c, plan)]
            ranked = self._fastest_first(plan, candidates)
            found = (self._check(plan, candidate) for candidate in ranked)
            self._checked[plan.digest] = next((entry for entry in found if entry is not None), None)
        entry = self._checked[plan.digest]
        if entry is not None and plan.points:
            self._favourite = self._with_fast_floats(entry[0])
        return entry

    def _with_fast_floats(self, candidate: Candidate) -> Candidate:
        """A plan almost all in integers serves as well in any float precision; others do not."""
        fastest = self._anchor()
        same_engine = fastest.engine == candidate.engine
        return replace(candidate, precision=fastest.precision) if same_engine else candidate

    def _serves(self, candidate: Candidate, plan: QuantizationPlan) -> bool:
        return candidate.engine in self.request.engines and (candidate.encoding == FLOAT) == (not plan.points)

    def _fastest_first(self, plan: QuantizationPlan, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those that open, by their time."""
        tensor = self.holdout.inputs[0].tensor
        with ExitStack() as stack:
            sessions = self._try_open_all([(plan, c) for c in candidates], stack)
            opened = {c: s for c, s in zip(candidates, sessions, strict=True) if s is not None}
            if not opened:
                return []
            runs = {c.label: _runner(s, tensor) for c, s in opened.items()}
            samples = paired_latency(runs, rounds=_SORTING_ROUNDS)
        return sorted(opened, key=lambda c: samples[c.label].p50_ms)

    def _check(self, plan: QuantizationPlan, candidate: Candidate) -> tuple[Candidate, PlanScore] | None:
        reference = self.reference_answers(plan)
        with ExitStack() as stack:
            session = self._try_open(plan, candidate, stack)
            try:
                answers = None if session is None else self._ask(session)
            except AvqError:
                return None
        if answers is None:
            return None
        deviation = self.holdout.compare(reference.detections, answers.detections)
        right, _ = agrees(deviation, answers.worst_sqnr_db, reference.worst_sqnr_db)
        return (candidate, self._judge(answers)) if right else None

    def _ask(self, session: Session) -> ModelOutputs:
        """Metrics against labels integrate over the score: they want the weak boxes too."""
        return self.holdout.run(session, floor=LOOK_FLOOR if self.map_drop is None else SCORE_FLOOR)

    def _judge(self, answers: ModelOutputs) -> PlanScore:
        score = self.holdout.score(answers)
        if self.map_drop is None or answers.detections is None:
            return score
        return replace(score, map_drop_percent=self.map_drop(answers.detections))

    def _times(
        self,
        plans: Sequence[QuantizationPlan],
        candidates: Sequence[Candidate | None],
        rounds: int,
        clock: Clock | None = None,
    ) -> list[Latency | None]:
        """Some at a time, all against the same float sessions."""
        times: list[Latency | None] = [None] * len(plans)
        todo = [(i, plans[i], c) for i, c in enumerate(candidates) if c is not None]
        if not todo:
            return times
        with ExitStack() as stack:
            nothing = QuantizationPlan(graph_digest=self.graph.digest)
            floats = [self._open(nothing, self._anchor(), stack) for _ in range(_FLOAT_SESSIONS)]
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
            runs = {label: _runner(session, tensor) for label, session in sessions.items()}
            anchors = {f"{_ANCHOR} {i}": _runner(session, tensor) for i, session in enumerate(floats)}
            samples = paired_latency({**runs, **anchors}, rounds=rounds, clock=clock)
        samples[_ANCHOR] = _typical([samples[label] for label in anchors])
        return [(int(label), _latency(samples, label, self._anchor().label)) for label in sessions]

    def _anchor(self) -> Candidate:
        if self._fastest_float is None:
            nothing = QuantizationPlan(graph_digest=self.graph.digest)
            self._fastest_float = self._fastest_first(nothing, candidates_for(self.request, nothing))[0]
        return self._fastest_float

    def _try_open_all(
        self, wanted: Sequence[tuple[QuantizationPlan, Candidate]], stack: ExitStack
    ) -> list[Session | None]:
        """Side by side: compiling takes longer than all runs, and runtimes do it outside of Python's lock."""
        with ThreadPoolExecutor(min(_OPENERS, self.request.probe_threads)) as openers:
            return list(openers.map(lambda one: self._try_open(one[0], one[1], stack), wanted))

    def _try_open(self, plan: QuantizationPlan, candidate: Candidate, stack: ExitStack) -> Session | None:
        try:
            return self._open(plan, candidate, stack)
        except AvqError:
            return None

    def _open(self, plan: QuantizationPlan, candidate: Candidate, stack: ExitStack) -> Session:
        engine = self.request.float_engines[candidate.engine]
        session = engine.open(self._model(plan, candidate), self._options(candidate))
        stack.callback(session.close)
        return session

    def _options(self, candidate: Candidate) -> SessionOptions:
        return SessionOptions(threads=self.request.recipe.threads, precision=candidate.precision)

    def _model(self, plan: QuantizationPlan, candidate: Candidate) -> bytes:
        if candidate.encoding == FLOAT:
            return bytes(self.proto.SerializeToString())
        return lower(self.proto, plan, candidate.encoding)


def _chunks(todo: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(todo), _OPEN_AT_ONCE):
        yield todo[start : start + _OPEN_AT_ONCE]


def _runner(session: Session, tensor: object) -> Callable[[], object]:
    return lambda: session.infer(tensor)  # type: ignore[arg-type]


def _typical(alike: Sequence[LatencySamples]) -> LatencySamples:
    """Round by round the median of sessions of one model."""
    return LatencySamples(np.median([one.ns for one in alike], axis=0).astype(np.int64))


def _latency(samples: Mapping[str, LatencySamples], label: str, float_label: str) -> Latency:
    own = samples[label]
    ratio, low, high = ratio_interval(own, samples[_ANCHOR])
    return Latency(own.p50_ms, own.p99_ms, ratio, low, high, float_label)
