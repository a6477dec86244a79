"""The result of a build: the object of ``avq build --json``, and its tables and closing lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from avq.builder.cross_compile.target import Compiled
from avq.builder.stage import Staged, rejected_folder
from avq.builder.trials.serving import Trial
from avq.builder.verify import Verified
from avq.types import Accepted, Answer, Recipe, TimeAnswer, Verdict

#: Values of "accepted" in the manifest and in --json.
_ACCEPTED: Mapping[Accepted, bool | Literal["pending-target"]] = {
    "yes": True,
    "no": False,
    "pending": "pending-target",
}
_HEADS: Mapping[Accepted, str] = {
    "yes": "accepted",
    "no": "REFUSED by the gate",
    "pending": "accuracy accepted, time to be measured on the target (pending-target)",
}

_CANNOT_TELL = "REFUSED by the gate, it cannot tell"


class FloatJson(TypedDict):
    """The float model: mAP, p50 of one inference in milliseconds, and the engine; null where not measured."""

    map: float | None
    p50_ms: float | None
    engine: str | None


class ChosenJson(TypedDict):
    """The chosen candidate.

    ``ratio`` is its time / the float model's with the 95 % interval (median, low, high); ``lost_interval`` are the
    one-sided 95 % limits (low, high) of ``lost``.
    """

    map: float | None
    p50_ms: float | None
    p99_ms: float | None
    ratio: list[float] | None
    lost: float | None
    lost_interval: list[float] | None
    confidence_shift: float | None
    sqnr_db: float | None


class _FloatKey(TypedDict):
    """A key of this name hides the type in the rest of its class."""

    float: FloatJson


class BuildJson(_FloatKey):
    """Object of ``avq build --json``; ``engines`` are those compiled for a target that is not here."""

    bundle: str
    strategy: str
    target: str
    engine: str
    runs_in: str
    accepted: bool | Literal["pending-target"]
    accuracy_verdict: Answer
    time_verdict: TimeAnswer
    metric: str
    reasons: list[str]
    next: list[str]
    chosen: ChosenJson
    int8_mac_share: float
    engines: list[dict[str, object]]
    seconds: float


@dataclass(frozen=True)
class Attempt:
    """One candidate, staged, verified and judged."""

    trial: Trial
    staged: Staged
    verified: Verified
    verdict: Verdict


@dataclass(frozen=True)
class Outcome:
    """The result of one build.

    Attributes:
        recipe: the request.
        final: the staged candidate with its verdict.
        trials: every candidate with its result.
        compiled: engines built ahead for a target that cannot run here.
        seconds: wall time of the build.
        published: the bundle was renamed to its destination, or to ``rejected`` where the gate refused it.
    """

    recipe: Recipe
    final: Attempt
    trials: tuple[Trial, ...]
    compiled: Compiled
    seconds: float
    published: bool = False

    @property
    def folder(self) -> Path:
        """The bundle: at its destination, at ``OUTPUT.rejected`` when the gate refused it, staged before."""
        if not self.published:
            return self.final.staged.folder
        return self.recipe.output if self.passed else rejected_folder(self.recipe.output)

    @property
    def chosen(self) -> Trial:
        return self.final.trial

    @property
    def verified(self) -> Verified:
        return self.final.verified

    @property
    def verdict(self) -> Verdict:
        return self.final.verdict

    @property
    def int8_mac_share(self) -> float:
        """Share of multiply-adds with eight-bit data and weights."""
        return self.final.staged.int8_mac_share

    @property
    def accepted(self) -> bool | Literal["pending-target"]:
        """The verdict as the manifest and --json write it."""
        return _ACCEPTED[self.verdict.accepted]

    @property
    def passed(self) -> bool:
        """Exit code 0: passed, or written in spite of the gate by --no-gate."""
        return self.verdict.passed or not self.recipe.gate

    def summary(self) -> BuildJson:
        """Return the object of ``avq build --json``; ``map`` is null without labels."""
        measured, latency = self.verified.measured, self.chosen.latency
        fidelity = measured.fidelity
        return {
            "bundle": str(self.folder),
            "strategy": self.recipe.strategy,
            "target": self.recipe.target,
            "engine": self.chosen.candidate.label,
            "runs_in": self.chosen.runs_in,
            "accepted": self.accepted,
            "accuracy_verdict": self.verdict.accuracy,
            "time_verdict": self.verdict.time,
            "metric": self.verdict.metric,
            "reasons": [*self.verdict.reasons, *self.compiled.remarks, *self._exclusions()],
            "next": list(self.verdict.fixes),
            "float": {
                "map": measured.float_accuracy.map if measured.float_accuracy else None,
                "p50_ms": self._float_p50_ms(),
                "engine": latency.float_engine if latency else None,
            },
            "chosen": {
                "map": measured.accuracy.map if measured.accuracy else None,
                "p50_ms": latency.p50_ms if latency else None,
                "p99_ms": latency.p99_ms if latency else None,
                "ratio": [latency.ratio, latency.ratio_low, latency.ratio_high] if latency else None,
                "lost": fidelity.lost if fidelity else None,
                "lost_interval": list(self.verdict.lost_interval) if self.verdict.lost_interval else None,
                "confidence_shift": fidelity.confidence_shift if fidelity else None,
                "sqnr_db": measured.sqnr_db,
            },
            "int8_mac_share": self.int8_mac_share,
            "engines": [dict(row) for row in self.compiled.rows],
            "seconds": round(self.seconds, 2),
        }

    def tables(self) -> list[tuple[str, Sequence[Mapping[str, object]]]]:
        """Return the tables of the command, each with its title."""
        if self.compiled.rows:
            return [("Engines compiled for GPUs that are not here", self.compiled.rows)]
        return [("Engines tried, timed interleaved", [trial.row() for trial in self.trials])]

    def footer(self) -> list[str]:
        """Return the last lines of the command: the verdict, its reasons, and the next commands."""
        verdict = self.verdict
        lines = [f"{self._head()}: {self.chosen.label}", *(f"  {r}" for r in verdict.reasons)]
        lines += [f"  {remark}" for remark in self.compiled.remarks]
        lines += [f"  next: {fix}" for fix in verdict.fixes]
        lines.append(f"bundle: {self.folder}   report: {self.folder / 'report.html'}")
        if verdict.accepted == "yes":
            lines.append(f"serve:  avq run --bundle {self.folder} --source scene://drive")
        if verdict.accepted == "pending":
            lines.append(f"next, on the vehicle:  avq compile {self.folder} --target {self.recipe.target}")
        return lines

    def _head(self) -> str:
        verdict = self.verdict
        if verdict.passed:
            return _HEADS[verdict.accepted]
        if not self.recipe.gate:
            return "written with accepted:false (--no-gate)"
        unsure = "no" not in (verdict.accuracy, verdict.time) and "cannot tell" in (
            verdict.accuracy,
            verdict.time,
        )
        return _CANNOT_TELL if unsure else _HEADS["no"]

    def _exclusions(self) -> list[str]:
        return [f"excluded {t.candidate.label}: {t.why}" for t in self.trials if not t.right]

    def _float_p50_ms(self) -> float | None:
        latency = self.chosen.latency
        return latency.float_p50_ms if latency is not None and latency.rounds else None
