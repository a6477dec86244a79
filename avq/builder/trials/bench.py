"""Open every candidate, compare it on its own engine, time the right ones interleaved.

A file that is right in one runtime can be wrong in another, so each candidate is compared with the
unoptimised reference run of the same lowered model, and one that deviates is excluded by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType

import onnx

from avq.builder.lower import lower
from avq.builder.probe_set import Answers, ProbeSet
from avq.builder.request import Request
from avq.builder.trials.candidates import FLOAT, Candidate, Trial, agrees, close_to_reference
from avq.errors import AvqError
from avq.hookspecs import Session
from avq.measure.latency import LatencySamples, paired_latency, ratio_interval
from avq.progress import Reporter
from avq.types import U8, Latency, QuantizationPlan, SessionOptions

ROUNDS = 60


class Bench:
    """Opens candidates once and keeps them open while they are compared and timed."""

    def __init__(
        self, request: Request, proto: onnx.ModelProto, plan: QuantizationPlan, probe_set: ProbeSet
    ) -> None:
        self._request, self._proto, self._plan, self._probe_set = request, proto, plan, probe_set
        self._models: dict[str, bytes] = {}
        self._answers: dict[str, Answers] = {}
        self._told: dict[str, ProbeSet] = {}
        self._sessions: dict[Candidate, Session] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()

    def model(self, encoding: str) -> bytes:
        """The model of one encoding; FLOAT is the float model as it is."""
        if encoding not in self._models:
            self._models[encoding] = (
                self._proto.SerializeToString()
                if encoding == FLOAT
                else lower(self._proto, self._plan, encoding)
            )
        return self._models[encoding]

    def try_all(self, candidates: Sequence[Candidate], report: Reporter) -> list[Trial]:
        """Compare each with its reference, then time the right ones interleaved."""
        trials = [self._try(c) for c in report.track(candidates, "engines", len(candidates))]
        return self._timed(trials)

    def _try(self, candidate: Candidate) -> Trial:
        options = SessionOptions(threads=self._request.recipe.threads, precision=candidate.precision)
        engine = self._request.float_engines[candidate.engine]
        try:
            session = engine.open(self.model(candidate.encoding), options)
        except AvqError as error:
            return Trial(candidate, why=error.what)
        try:
            answers = self._probe_set.ask(session)
        except AvqError as error:
            session.close()
            return Trial(candidate, why=error.what)
        reference = self._reference_answers(candidate.encoding)
        deviation = self._probe_set.compare(reference.detections, answers.detections)
        right, why = agrees(deviation, answers.worst_sqnr_db, reference.worst_sqnr_db)
        if right and self._probe_set.decoder is None and candidate.encoding != FLOAT:
            right, why = close_to_reference(
                self._reference_told(candidate.encoding).ask(session).worst_sqnr_db
            )
        if right:
            self._sessions[candidate] = session
        else:
            session.close()
        return Trial(candidate, session.precision, deviation, answers.worst_sqnr_db, right, why)

    def _reference_answers(self, encoding: str) -> Answers:
        if encoding not in self._answers:
            options = SessionOptions(threads=self._request.recipe.threads, optimise=False)
            session = self._request.reference.open(self.model(encoding), options)
            try:
                self._answers[encoding] = self._probe_set.ask(session)
            finally:
                session.close()
        return self._answers[encoding]

    def _reference_told(self, encoding: str) -> ProbeSet:
        """The probe set with the reference's own answers: without boxes, an engine is compared with these."""
        if encoding not in self._told:
            options = SessionOptions(threads=self._request.recipe.threads, optimise=False)
            session = self._request.reference.open(self.model(encoding), options)
            try:
                self._told[encoding] = self._probe_set.told_by(session)
            finally:
                session.close()
        return self._told[encoding]

    def _timed(self, trials: Sequence[Trial]) -> list[Trial]:
        right = [t for t in trials if t.right]
        if not right:
            return list(trials)
        tensor = self._probe_set.inputs[0].tensor
        runs = {t.candidate.label: _runner(self._sessions[t.candidate], tensor) for t in right}
        samples = paired_latency(runs, rounds=ROUNDS)
        floats = [t.candidate.label for t in right if t.candidate.encoding == FLOAT]
        if not floats:
            return list(trials)
        fastest = min(floats, key=lambda label: samples[label].p50_ms)
        return [
            replace(t, latency=_latency(samples, t.candidate.label, fastest)) if t.right else t
            for t in trials
        ]


def _runner(session: Session, tensor: U8) -> Callable[[], object]:
    return lambda: session.infer(tensor)


def _latency(samples: Mapping[str, LatencySamples], label: str, float_label: str) -> Latency:
    own = samples[label]
    ratio, low, high = ratio_interval(own, samples[float_label])
    return Latency(own.p50_ms, own.p99_ms, ratio, low, high, float_label)
