"""The decisions of ``static``: which kinds of operators, which calibrator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field

from avq import Workbench
from avq.toolbox import Placement, RangingOptions, place, wanted_statistics
from avq.types import (
    CALIBRATORS,
    Calibrator,
    GraphView,
    NodePrecision,
    PlanScore,
    QuantizationPlan,
)
from avq_static.assemble import Choice, assemble

# A kind of operator is kept float only when that wins back at least this much badness (lost share + shift).
_WORTH_KEEPING_FLOAT = 0.005


class StaticOptions(RangingOptions):
    """Options of ``static``."""

    depthwise: Literal["auto", "int8", "float"] = Field(
        "auto", description="depthwise convolutions in INT8, float, or whichever the measurement prefers"
    )


@dataclass(frozen=True)
class _Tried:
    choice: Choice
    plan: QuantizationPlan
    score: PlanScore

    @property
    def loss(self) -> str:
        fidelity = self.score.fidelity
        if fidelity is None:
            return f"{min(self.score.sqnr_db.values(), default=0.0):.1f} dB at the worst output"
        return f"{100 * fidelity.lost:.1f} % of the boxes are lost"

    def row(self) -> dict[str, object]:
        fidelity = self.score.fidelity
        return {
            "calibrator": self.choice.calibrator,
            "depthwise": "float" if self.choice.float_kinds else "int8",
            "lost boxes %": round(100 * fidelity.lost, 2) if fidelity else "-",
            "confidence shift": round(fidelity.confidence_shift, 4) if fidelity else "-",
            "worst SQNR dB": round(min(self.score.sqnr_db.values(), default=float("nan")), 1),
        }


class StaticQuantizer:
    """The strategy ``static``."""

    name = "static"
    version = "1"
    options = StaticOptions

    def plan(self, graph: GraphView, bench: Workbench, options: StaticOptions) -> QuantizationPlan:
        placements = place(graph, bench.keep_float)
        stats = bench.collect(wanted_statistics(graph, placements))
        symmetric = options.symmetric(symmetric_only=bench.symmetric_only)
        tried: dict[Choice, _Tried] = {}

        def attempt(calibrator: Calibrator, float_kinds: tuple[str, ...]) -> _Tried:
            choice = Choice(calibrator, options.percentile, symmetric, float_kinds)
            if choice not in tried:
                plan = assemble(graph, bench, placements, stats, choice, owner=(self.name, self.version))
                tried[choice] = _Tried(choice, plan, bench.error(plan))
            return tried[choice]

        first: Calibrator = "minmax" if options.calibrator == "auto" else options.calibrator
        float_kinds = self._float_kinds(placements, options, lambda kinds: attempt(first, kinds))
        methods = CALIBRATORS if options.calibrator == "auto" else (options.calibrator,)
        best = min((attempt(m, float_kinds) for m in methods), key=lambda t: t.score.badness)
        bench.note("static: what was tried", [{**t.row(), "kept": t is best} for t in tried.values()])
        kinds = [tried.get(Choice(first, options.percentile, symmetric, k)) for k in ((), float_kinds)]
        return _explained(best.plan, placements, float_kinds, _why(*kinds))

    def _float_kinds(
        self,
        placements: Sequence[Placement],
        options: StaticOptions,
        attempt: Callable[[tuple[str, ...]], _Tried],
    ) -> tuple[str, ...]:
        has_depthwise = any(p.kind == "depthwise" for p in placements)
        if not has_depthwise or options.depthwise == "int8":
            return ()
        if options.depthwise == "float":
            return ("depthwise",)
        gain = attempt(()).score.badness - attempt(("depthwise",)).score.badness
        return ("depthwise",) if gain > _WORTH_KEEPING_FLOAT else ()


def _why(int8: _Tried | None, left: _Tried | None) -> str:
    """The measured reason for leaving a kind float; the user's wish where nothing was measured."""
    if int8 is None or left is None:
        return "float by option depthwise=float"
    return f"in INT8 {int8.loss}, left float {left.loss} (calibrator {int8.choice.calibrator})"


def _explained(
    plan: QuantizationPlan, placements: Sequence[Placement], float_kinds: tuple[str, ...], why: str
) -> QuantizationPlan:
    reasons = {p.node: NodePrecision("fp32", f"{p.kind}: {why}") for p in placements if p.kind in float_kinds}
    return replace(plan, precisions={**plan.precisions, **reasons})
