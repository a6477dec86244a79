"""How a build ended: the object ``avq build --json`` prints, and the tables people read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from avq.builder.cross_compile.target import Compiled
from avq.builder.trials.bench import Trial
from avq.builder.verify import Verified
from avq.types import Recipe, Verdict


@dataclass(frozen=True)
class Outcome:
    """The result of one build.

    Attributes:
        recipe: what was asked.
        folder: the bundle; the staging folder when the gate refused.
        trials: every candidate with what became of it.
        chosen: the one that was staged.
        verdict: the gate's answer.
        int8_mac_share: share of multiply-adds with eight-bit data and weights.
        seconds: wall time of the build.
        compiled: engines built ahead for a target that cannot run here.
    """

    recipe: Recipe
    folder: Path
    trials: tuple[Trial, ...]
    chosen: Trial
    verified: Verified
    verdict: Verdict
    int8_mac_share: float
    seconds: float
    compiled: Compiled = field(default_factory=Compiled)

    @property
    def accepted(self) -> bool | Literal["pending-target"]:
        """The manifest's word: what was never timed on its target only waits for it."""
        return "pending-target" if self.verdict.accepted and self.compiled.pending else self.verdict.accepted

    @property
    def answer_is_yes(self) -> bool:
        """Exit code 0: accepted, or written anyway because --no-gate said so."""
        return self.verdict.accepted or not self.recipe.gate

    def summary(self) -> dict[str, Any]:
        """The contract's keys of ``avq build --json``; ``map`` is null without labels."""
        measured, latency = self.verified.measured, self.chosen.latency
        fidelity = measured.fidelity
        return {
            "bundle": str(self.folder),
            "strategy": self.recipe.strategy,
            "target": self.recipe.target,
            "engine": self.chosen.candidate.label,
            "runs_in": self.chosen.runs_in,
            "accepted": self.accepted,
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
                "confidence_shift": fidelity.confidence_shift if fidelity else None,
                "sqnr_db": measured.sqnr_db,
            },
            "int8_mac_share": self.int8_mac_share,
            "engines": [dict(row) for row in self.compiled.rows],
            "seconds": round(self.seconds, 2),
        }

    def tables(self) -> list[tuple[str, Sequence[Mapping[str, object]]]]:
        if self.compiled.rows:
            return [("Engines built for cards that are not here", self.compiled.rows)]
        return [("Engines tried, timed interleaved", [trial.row() for trial in self.trials])]

    def closing(self) -> list[str]:
        """What a person reads last: the verdict, its reasons, and what to type next."""
        verdict = self.verdict
        head = "accepted" if verdict.accepted else "REFUSED by the gate"
        if self.accepted == "pending-target":
            head = "right, and waiting to be timed on its target (pending-target)"
        if not verdict.accepted and not self.recipe.gate:
            head = "written with accepted:false (--no-gate)"
        lines = [f"{head}: {self.chosen.candidate.label}", *(f"  {r}" for r in verdict.reasons)]
        lines += [f"  {remark}" for remark in self.compiled.remarks]
        lines += [f"  next: {fix}" for fix in verdict.fixes]
        lines.append(f"bundle: {self.folder}   report: {self.folder / 'report.html'}")
        if self.accepted is True:
            lines.append(f"serve:  avq run --bundle {self.folder} --source scene://drive")
        if self.accepted == "pending-target":
            lines.append(f"next, on the vehicle:  avq compile {self.folder} --target {self.recipe.target}")
        return lines

    def _exclusions(self) -> list[str]:
        return [f"excluded {t.candidate.label}: {t.why}" for t in self.trials if not t.right]

    def _float_p50_ms(self) -> float | None:
        wanted = self.chosen.latency.float_engine if self.chosen.latency else ""
        for trial in self.trials:
            if trial.latency is not None and trial.candidate.label == wanted:
                return trial.latency.p50_ms
        return None
