"""Try every engine on one plan: open, compare with the reference, time the right ones interleaved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TypeVar

from avq.builder.context import BuildContext
from avq.builder.holdout import HoldoutSet, ModelOutputs
from avq.builder.request import Request
from avq.builder.trials.layer_times import LayerCosts, split_by_node
from avq.builder.trials.serving import (
    FLOAT,
    Candidate,
    Trial,
    agrees,
    candidates_for,
    close_to_reference,
    could_serve,
    model_for,
    open_candidate,
    paired_samples,
    paired_with,
    serves,
    session_options,
)
from avq.errors import AvqError, RefusedError
from avq.hookspecs import ProfilingEngine, Session
from avq.types import QuantizationPlan, SessionOptions

ROUNDS = 60

T = TypeVar("T")


def try_engines(plan: QuantizationPlan, context: BuildContext) -> list[Trial]:
    """Compare each candidate with its reference, then time the right ones interleaved."""
    candidates = candidates_for(context.request, plan)
    with ExitStack() as stack:
        bench = _Bench(plan, context, stack)
        tracked = context.reporter.track(candidates, "engines", len(candidates))
        return bench.timed([bench.check(candidate) for candidate in tracked])


def fastest_first(trials: Sequence[Trial], plan: QuantizationPlan, request: Request) -> list[Trial]:
    """Return the candidates that agree with their reference and may serve the target, fastest first.

    Raises RefusedError, naming every excluded one, when none is left.
    """
    serving = [t for t in trials if serves(request, t.candidate, plan)]
    timed = [(t.latency.ratio, t) for t in serving if t.latency is not None]
    if not timed:
        raise RefusedError(
            f"no engine of target {request.recipe.target} agrees with the reference on this plan",
            seen="; ".join(f"{t.candidate.label}: {t.why}" for t in serving) or "no candidate",
            fix="--option resymmetrize=true, or --strategy float with the float model"
            if request.imports
            else "--option activations=symmetric, another --strategy, or --strategy float",
        )
    return [t for _, t in sorted(timed, key=lambda pair: pair[0])]


class _Bench:
    """Candidates of one plan; right ones stay open until the stack closes."""

    def __init__(self, plan: QuantizationPlan, context: BuildContext, stack: ExitStack) -> None:
        self._plan, self._stack = plan, stack
        self._request, self._holdout = context.request, context.holdout
        self._proto = context.analysis.model.proto
        self._models: dict[str, bytes] = {}
        self._outputs: dict[str, ModelOutputs] = {}
        self._references: dict[str, HoldoutSet] = {}
        self._sessions: dict[str, Session] = {}

    def check(self, candidate: Candidate) -> Trial:
        """Open one candidate and compare it with the reference run of the same model."""
        try:
            session = open_candidate(self._request, candidate, self._model(candidate.encoding))
        except AvqError as error:
            return Trial(candidate, why=error.what)
        try:
            outputs = self._holdout.run(session)
        except AvqError as error:
            session.close()
            return Trial(candidate, why=error.what)
        reference = self._reference_outputs(candidate.encoding)
        deviation = self._holdout.compare(reference.detections, outputs.detections)
        right, why = agrees(deviation, outputs.worst_sqnr_db, reference.worst_sqnr_db)
        if right and self._holdout.decoder is None and candidate.encoding != FLOAT:
            right, why = close_to_reference(self._reference(candidate.encoding).run(session).worst_sqnr_db)
        if right:
            self._sessions[candidate.label] = session
            self._stack.callback(session.close)
        else:
            session.close()
        return Trial(candidate, session.precision, deviation, outputs.worst_sqnr_db, right, why)

    def timed(self, trials: Sequence[Trial]) -> list[Trial]:
        """Time the right ones in turns, paired with the fastest float one that could be served."""
        floats = [
            t.candidate.label
            for t in trials
            if t.right and t.candidate.encoding == FLOAT and could_serve(t.candidate.precision, t.deviation)
        ]
        if not floats:
            return list(trials)
        samples = paired_samples(self._sessions, self._holdout.inputs[0].tensor, ROUNDS)
        fastest = min(floats, key=lambda label: samples[label].p50_ms)
        return [
            replace(t, latency=paired_with(samples[t.candidate.label], samples[fastest], fastest))
            if t.right
            else t
            for t in trials
        ]

    def _model(self, encoding: str) -> bytes:
        if encoding not in self._models:
            self._models[encoding] = model_for(self._proto, self._plan, encoding)
        return self._models[encoding]

    def _reference_outputs(self, encoding: str) -> ModelOutputs:
        if encoding not in self._outputs:
            self._outputs[encoding] = self._in_reference(encoding, self._holdout.run)
        return self._outputs[encoding]

    def _reference(self, encoding: str) -> HoldoutSet:
        """Return the pictures with the reference's raw outputs: without boxes, engines are compared with these."""
        if encoding not in self._references:
            self._references[encoding] = self._in_reference(encoding, self._holdout.with_reference)
        return self._references[encoding]

    def _in_reference(self, encoding: str, measure: Callable[[Session], T]) -> T:
        options = SessionOptions(threads=self._request.recipe.threads, optimise=False)
        session = self._request.reference.open(self._model(encoding), options)
        try:
            return measure(session)
        finally:
            session.close()


def layer_costs(plan: QuantizationPlan, candidate: Candidate, context: BuildContext) -> LayerCosts | None:
    """Profile the float and the lowered model in turns on the candidate's engine.

    Returns:
        None where the engine does not profile, and for the float model.
    """
    request, model, inputs = context.request, context.analysis.model, context.holdout.inputs
    engine = request.float_engines.get(candidate.engine)
    if not isinstance(engine, ProfilingEngine) or candidate.encoding == FLOAT or not inputs:
        return None
    models = [model_for(model.proto, plan, encoding) for encoding in (FLOAT, candidate.encoding)]
    try:
        times = engine.layer_times(models, session_options(request, candidate), inputs[0].tensor)
    except AvqError:
        return None
    (float_ns, float_rest), (served_ns, served_rest) = (split_by_node(layers, model.view) for layers in times)
    return LayerCosts(float_ns, served_ns, float_rest, served_rest)
