"""Every (engine, encoding, float precision) a plan could serve in, what became of each, and the choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from avq.builder.request import Request
from avq.errors import RefusedError
from avq.types import EnginePrecision, Fidelity, Latency, QuantizationPlan

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
