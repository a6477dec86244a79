"""Advise on a refused build: the operators that lose the accuracy, and what to do about it.

`find_cause` takes one kind of operator out of the plan at a time and measures again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from avq.builder.context import BuildContext
from avq.builder.gate import CANNOT_TELL
from avq.builder.planning import Planned
from avq.toolbox import Placement, place
from avq.types import GraphView, ImportedQuantization, PlanScore, QuantizationPlan, Verdict

# A kind is the cause when leaving it float recovers at least this share of the badness.
_SHARE_RECOVERED = 0.5
_SHOWN = 3
#: Pitfalls that lose boxes, and the option of ``qat`` that corrects each.
_CORRECTED_BY = {
    "AVQ-Q05": "float_depthwise",
    "AVQ-Q25": "float_heads",
    "AVQ-Q26": "float_heads",
}


def advise(verdict: Verdict, planned: Planned, context: BuildContext) -> Verdict:
    """Return a refused verdict with the causes of its loss and more fixes; one without a loss as it is."""
    if verdict.passed or verdict.accuracy == "yes" or verdict.metric == CANNOT_TELL:
        return verdict
    causes: list[str] = []
    if planned.error is not None and planned.error(planned.plan).has_loss:
        cause = find_cause(context.analysis.model.view, planned.plan, planned.error)
        causes += [str(cause)] if cause is not None else []
        causes += left_float(planned.plan, context.analysis.keep_float)
    fixes = verdict.fixes
    if planned.foreign is not None:
        in_model = context.analysis.imported is not None
        fixes = with_suggestions(fixes, planned.foreign, context.recipe.options, in_model=in_model)
    return replace(verdict, reasons=(*verdict.reasons, *causes), fixes=fixes)


def with_suggestions(
    fixes: Sequence[str], foreign: ImportedQuantization, options: Mapping[str, object], *, in_model: bool
) -> tuple[str, ...]:
    """Return ``fixes`` of a refused import with those first that correct its pitfalls.

    Args:
        fixes: of the gate.
        foreign: the imported quantization.
        options: of the strategy, as given; their fixes are left out.
        in_model: it is in the model's own file, which other strategies do not read.
    """
    corrections: dict[str, list[str]] = {}
    for finding in foreign.findings:
        option = _CORRECTED_BY.get(finding.code)
        if option is not None and option not in options:
            corrections.setdefault(finding.fix, []).append(finding.code)
    first = [f"{fix} ({', '.join(codes)})" for fix, codes in corrections.items()]
    others = [
        f"from the float model: {fix}" if in_model and fix.startswith("--strategy") else fix for fix in fixes
    ]
    return tuple(dict.fromkeys([*first, *others]))


@dataclass(frozen=True)
class Cause:
    """A kind of operator whose INT8 form loses most of the accuracy."""

    kind: str
    nodes: tuple[str, ...]
    with_it: PlanScore
    without_it: PlanScore

    def __str__(self) -> str:
        what = (
            f"{len(self.nodes)} {self.kind} operators"
            if self.kind == "matmul"
            else (f"{len(self.nodes)} {self.kind} convolutions")
        )
        return f"cause: the {what}: {_loss(self.with_it)} with them in INT8, {_loss(self.without_it)} with them float"


def find_cause(
    graph: GraphView, plan: QuantizationPlan, error: Callable[[QuantizationPlan], PlanScore]
) -> Cause | None:
    """Find the kind of operator that loses most of the accuracy; None when no kind alone does.

    Args:
        graph: the float graph of the plan.
        error: Workbench.error.
    """
    quantized = {point.edge.node for point in plan.points}
    placed = [p for p in place(graph) if p.node in quantized]
    kinds = sorted({p.kind for p in placed})
    if len(kinds) < 2:
        return None
    whole = error(plan)
    causes = [
        Cause(kind, _nodes(placed, kind), whole, error(without(plan, _nodes(placed, kind)))) for kind in kinds
    ]
    best = min(causes, key=lambda cause: cause.without_it.badness)
    recovered = whole.badness - best.without_it.badness
    return best if recovered >= _SHARE_RECOVERED * whole.badness else None


def left_float(plan: QuantizationPlan, head: Collection[str]) -> list[str]:
    """List the reasons for float operators outside the ``head``: the most frequent ones, the rest counted."""
    reasons = Counter(
        p.reason for name, p in plan.precisions.items() if p.precision != "int8" and name not in head
    ).most_common()
    lines = [f"{count} operators are float already: {reason}" for reason, count in reasons[:_SHOWN]]
    rest = sum(count for _, count in reasons[_SHOWN:])
    return [*lines, f"{rest} more are float for other reasons"] if rest else lines


def without(plan: QuantizationPlan, nodes: Sequence[str]) -> QuantizationPlan:
    """Return ``plan`` without the quantizers of ``nodes``."""
    points = tuple(p for p in plan.points if p.edge.node not in nodes)
    edges = {p.edge for p in points}
    ties = tuple(t for t in (tie & edges for tie in plan.ties) if len(t) > 1)
    return replace(plan, points=points, ties=ties)


def _nodes(placed: Sequence[Placement], kind: str) -> tuple[str, ...]:
    return tuple(p.node for p in placed if p.kind == kind)


def _loss(score: PlanScore) -> str:
    if score.fidelity is not None:
        return f"{100 * score.fidelity.lost:.1f} % of the boxes lost"
    return f"worst output at {min(score.sqnr_db.values(), default=0.0):.1f} dB"
