"""Open every candidate, compare it on its own engine, time the right ones interleaved.

A file that is right in one runtime can be wrong in another, so each candidate is compared with the
unoptimised reference run of the same lowered model, and one that deviates is excluded by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType

import onnx

from avq.builder.holdout import HoldoutSet, ModelOutputs
from avq.builder.lower import lower
from avq.builder.request import Request
from avq.errors import AvqError, RefusedError
from avq.hookspecs import Session
from avq.measure.latency import LatencySamples, paired_latency, ratio_interval
from avq.progress import Reporter
from avq.types import U8, EnginePrecision, Fidelity, Latency, QuantizationPlan, SessionOptions

# Every (engine, encoding, float precision) a plan could serve in, what became of each, and the choice.

# An engine may round differently than the reference, not see differently.
MAX_DEVIATION_LOST = 0.01
MAX_DEVIATION_SHIFT = 0.02
MIN_FLOAT_SQNR_DB = 25.0
# Rounding flips leave right engines at 26 dB or more from the reference; wrong S8 kernels of OpenVINO at 11 to 14.
MIN_REFERENCE_SQNR_DB = 20.0
FLOAT = "float"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to serve a plan."""

    engine: str
    encoding: str  # "float", "s8", "u8" or "asymmetric"
    precision: EnginePrecision

    @property
    def label(self) -> str:
        return f"{self.engine} {self.encoding} {self.precision}"


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of a candidate.

    Attributes:
        runs_in: what the engine says it really runs.
        deviation: its boxes against the unoptimised reference of the same model; None without a decoder.
        sqnr_db: of its worst output, against the float model.
        right: it agrees with the reference.
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

    def row(self) -> dict[str, object]:
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
    """Float on every installed engine, which the gate compares with; then the plan on the target's."""
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


def fastest_first(trials: Sequence[Trial], plan: QuantizationPlan, request: Request) -> list[Trial]:
    """The candidates that agree with their reference and may serve the target, fastest first.

    Raises RefusedError, naming every excluded one, when none is left.
    """
    serving = [
        t
        for t in trials
        if t.candidate.engine in request.engines and (t.candidate.encoding == FLOAT) == (not plan.points)
    ]
    timed = [(t.latency.ratio, t) for t in serving if t.latency is not None]
    if not timed:
        raise RefusedError(
            f"no engine runs this plan rightly on target {request.recipe.target}",
            seen="; ".join(f"{t.candidate.label}: {t.why}" for t in serving) or "no candidate",
            fix="--option activations=symmetric, another --strategy, or --strategy float",
        )
    return [t for _, t in sorted(timed, key=lambda pair: pair[0])]


def agrees(deviation: Fidelity | None, sqnr_db: float, reference_sqnr_db: float) -> tuple[bool, str]:
    """Whether an engine agrees with the reference: by boxes where there are any, else by noise."""
    if deviation is not None and deviation.boxes:
        lost = round(deviation.lost * deviation.boxes)
        # Rounding moves single boxes over a threshold: wrong is what a share of 1 % would hardly ever show.
        expected = MAX_DEVIATION_LOST * deviation.boxes
        right = lost <= 1 + expected + 2.33 * math.sqrt(expected)
        right = right and abs(deviation.confidence_shift) <= MAX_DEVIATION_SHIFT
        return right, f"lost {lost} of {deviation.boxes}, shift {deviation.confidence_shift:+.4f}"
    floor = min(reference_sqnr_db - 3.0, MIN_FLOAT_SQNR_DB)
    return sqnr_db >= floor, f"SQNR {sqnr_db:.1f} dB, reference {reference_sqnr_db:.1f} dB"


def close_to_reference(sqnr_db: float) -> tuple[bool, str]:
    """Whether an engine's outputs are the reference's, where there are no boxes to compare.

    A plan may be far from its float graph (few bits, a trained quantization) and still have one right answer.
    """
    return sqnr_db >= MIN_REFERENCE_SQNR_DB, f"SQNR {sqnr_db:.1f} dB to the reference"


ROUNDS = 60


class Bench:
    """Opens candidates once and keeps them open while they are compared and timed."""

    def __init__(
        self, request: Request, proto: onnx.ModelProto, plan: QuantizationPlan, holdout: HoldoutSet
    ) -> None:
        self._request, self._proto, self._plan, self._holdout = request, proto, plan, holdout
        self._models: dict[str, bytes] = {}
        self._answers: dict[str, ModelOutputs] = {}
        self._told: dict[str, HoldoutSet] = {}
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
            answers = self._holdout.run(session)
        except AvqError as error:
            session.close()
            return Trial(candidate, why=error.what)
        reference = self._reference_answers(candidate.encoding)
        deviation = self._holdout.compare(reference.detections, answers.detections)
        right, why = agrees(deviation, answers.worst_sqnr_db, reference.worst_sqnr_db)
        if right and self._holdout.decoder is None and candidate.encoding != FLOAT:
            right, why = close_to_reference(
                self._reference_told(candidate.encoding).run(session).worst_sqnr_db
            )
        if right:
            self._sessions[candidate] = session
        else:
            session.close()
        return Trial(candidate, session.precision, deviation, answers.worst_sqnr_db, right, why)

    def _reference_answers(self, encoding: str) -> ModelOutputs:
        if encoding not in self._answers:
            options = SessionOptions(threads=self._request.recipe.threads, optimise=False)
            session = self._request.reference.open(self.model(encoding), options)
            try:
                self._answers[encoding] = self._holdout.run(session)
            finally:
                session.close()
        return self._answers[encoding]

    def _reference_told(self, encoding: str) -> HoldoutSet:
        """The probe set with the reference's own answers: without boxes, an engine is compared with these."""
        if encoding not in self._told:
            options = SessionOptions(threads=self._request.recipe.threads, optimise=False)
            session = self._request.reference.open(self.model(encoding), options)
            try:
                self._told[encoding] = self._holdout.with_reference(session)
            finally:
                session.close()
        return self._told[encoding]

    def _timed(self, trials: Sequence[Trial]) -> list[Trial]:
        right = [t for t in trials if t.right]
        if not right:
            return list(trials)
        tensor = self._holdout.inputs[0].tensor
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
