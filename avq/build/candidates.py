"""Every (encoding, engine, float precision) a plan could serve in: tried, compared, timed, chosen.

A file that is right in one runtime can be wrong in another, so each candidate is compared on its OWN engine
with the unoptimised reference run of the same lowered model, and one that deviates is excluded by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from avq.build.lower import lower
from avq.build.probe_set import Answers, ProbeSet
from avq.build.workbench import reference_encoding
from avq.errors import AvqError
from avq.hookspecs import Engine, Session
from avq.measure.latency import LatencySamples, paired_latency, ratio_interval
from avq.progress import Reporter
from avq.types import U8, EnginePrecision, Fidelity, Latency, QuantizationPlan, SessionOptions

# An engine may round differently than the reference, not see differently.
MAX_DEVIATION_LOST = 0.01
MAX_DEVIATION_SHIFT = 0.02
MIN_FLOAT_SQNR_DB = 25.0
FLOAT = "float"
ROUNDS = 60


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
        right: it agrees with the reference.
        why: one line: the deviation, or why it could not be opened.
        latency: paired with the fastest float engine; None when excluded.
    """

    candidate: Candidate
    runs_in: str = ""
    deviation: Fidelity | None = None
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
            "why": self.why,
        }


def candidates_for(
    plan: QuantizationPlan, engines: Sequence[Engine], *, with_plan: bool = True
) -> list[Candidate]:
    """The float candidates of every installed engine, then the plan's own."""
    floats = [Candidate(e.name, FLOAT, p) for e in engines for p in _precisions(e)]  # type: ignore[arg-type]
    if not with_plan or not plan.points:
        return floats
    usable = ("s8", "u8") if plan.symmetric else ("asymmetric",)
    lowered = [
        Candidate(e.name, encoding, p)  # type: ignore[arg-type]
        for e in engines
        for encoding in e.encodings()
        if encoding in usable
        for p in _precisions(e)
    ]
    return floats + lowered


def _precisions(engine: Engine) -> tuple[str, ...]:
    return engine.float_precisions


class Bench:
    """Opens candidates once and keeps them open while they are compared and timed."""

    def __init__(
        self,
        proto: object,
        plan: QuantizationPlan,
        engines: Mapping[str, Engine],
        probe_set: ProbeSet,
        *,
        reference: Engine,
        threads: int,
    ) -> None:
        self._proto, self._plan, self._engines = proto, plan, engines
        self._probe_set, self._reference, self._threads = probe_set, reference, threads
        self._models: dict[str, bytes] = {}
        self._answers: dict[str, Answers] = {}
        self._sessions: dict[Candidate, Session] = {}

    def model(self, encoding: str) -> bytes:
        """The lowered model of one encoding; FLOAT is the empty plan."""
        if encoding not in self._models:
            plan = replace(self._plan, points=(), ties=(), overrides={}) if encoding == FLOAT else self._plan
            written = reference_encoding(plan) if encoding == FLOAT else encoding
            self._models[encoding] = lower(self._proto, plan, written)
        return self._models[encoding]

    def try_all(self, candidates: Sequence[Candidate], report: Reporter) -> list[Trial]:
        """Compare each with its reference, then time the right ones interleaved."""
        trials = [self._try(c) for c in report.track(candidates, "engines", len(candidates))]
        return self._timed(trials)

    def _try(self, candidate: Candidate) -> Trial:
        options = SessionOptions(threads=self._threads, precision=candidate.precision)
        try:
            session = self._engines[candidate.engine].open(self.model(candidate.encoding), options)
            answers = self._probe_set.ask(session)
        except AvqError as error:
            return Trial(candidate, why=error.what)
        reference = self._reference_answers(candidate.encoding)
        deviation = self._probe_set.compare(reference.detections, answers.detections)
        right, why = _judge_deviation(deviation, answers.worst_sqnr_db, reference.worst_sqnr_db)
        if right:
            self._sessions[candidate] = session
        else:
            session.close()
        return Trial(candidate, session.precision, deviation, right, why)

    def _reference_answers(self, encoding: str) -> Answers:
        if encoding not in self._answers:
            options = SessionOptions(threads=self._threads, optimise=False)
            session = self._reference.open(self.model(encoding), options)
            try:
                self._answers[encoding] = self._probe_set.ask(session)
            finally:
                session.close()
        return self._answers[encoding]

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

    def close(self) -> None:
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()


def _judge_deviation(
    deviation: Fidelity | None, sqnr_db: float, reference_sqnr_db: float
) -> tuple[bool, str]:
    """Whether an engine agrees with the reference: by boxes where there are any, else by noise."""
    if deviation is not None and deviation.boxes:
        lost = round(deviation.lost * deviation.boxes)
        # On few boxes a single one on the edge of the threshold is not a wrong engine.
        right = lost <= max(1.0, MAX_DEVIATION_LOST * deviation.boxes)
        right = right and abs(deviation.confidence_shift) <= MAX_DEVIATION_SHIFT
        return right, (
            f"{lost} of {deviation.boxes} reference boxes lost, shift {deviation.confidence_shift:+.4f}"
        )
    floor = min(reference_sqnr_db - 3.0, MIN_FLOAT_SQNR_DB)
    return sqnr_db >= floor, f"SQNR {sqnr_db:.1f} dB, reference {reference_sqnr_db:.1f} dB"


def _runner(session: Session, tensor: U8) -> Callable[[], object]:
    return lambda: session.infer(tensor)


def _latency(samples: Mapping[str, LatencySamples], label: str, float_label: str) -> Latency:
    own = samples[label]
    ratio, low, high = ratio_interval(own, samples[float_label])
    return Latency(own.p50_ms, own.p99_ms, ratio, low, high, float_label)
