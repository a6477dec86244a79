"""Why did INT8 lose so much? Take one kind of operator out of the plan at a time and measure again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from avq.toolbox import Placement, place
from avq.types import GraphView, PlanScore, QuantizationPlan

# A kind is called the cause when leaving it float wins back at least this share of the badness.
_SHARE_WON_BACK = 0.5
_SHOWN = 3


@dataclass(frozen=True)
class Cause:
    """A kind of operator whose INT8 form costs most of what was lost."""

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
    """The kind of operator that ruins ``plan``, or None when no kind alone does.

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
    won_back = whole.badness - best.without_it.badness
    return best if won_back >= _SHARE_WON_BACK * whole.badness else None


def left_float(plan: QuantizationPlan, head: Collection[str]) -> list[str]:
    """What the strategy left float outside the ``head``, and why: its commonest reasons, the rest counted."""
    reasons = Counter(
        p.reason for name, p in plan.precisions.items() if p.precision != "int8" and name not in head
    ).most_common()
    said = [f"{count} operators are float already: {reason}" for reason, count in reasons[:_SHOWN]]
    rest = sum(count for _, count in reasons[_SHOWN:])
    return [*said, f"{rest} more are float for other reasons"] if rest else said


def without(plan: QuantizationPlan, nodes: Sequence[str]) -> QuantizationPlan:
    """``plan`` with every quantizer of ``nodes`` taken out."""
    points = tuple(p for p in plan.points if p.edge.node not in nodes)
    kept = {p.edge for p in points}
    ties = tuple(t for t in (tie & kept for tie in plan.ties) if len(t) > 1)
    return replace(plan, points=points, ties=ties)


def _nodes(placed: Sequence[Placement], kind: str) -> tuple[str, ...]:
    return tuple(p.node for p in placed if p.kind == kind)


def _loss(score: PlanScore) -> str:
    if score.fidelity is not None:
        return f"{100 * score.fidelity.lost:.1f} % of the boxes lost"
    return f"worst output at {min(score.sqnr_db.values(), default=0.0):.1f} dB"
