"""What one choice of ``static`` means for every operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from avq import CalibrationStats, Workbench
from avq.toolbox import Placement, Ranging
from avq.toolbox import assemble as assemble_plan
from avq.types import Calibrator, GraphView, NodePrecision, QuantizationPlan


@dataclass(frozen=True)
class Choice:
    """One way to fill in a static plan.

    Attributes:
        calibrator, percentile: how ranges are chosen.
        symmetric: signed grids around zero, or unsigned ones with a zero point.
        float_kinds: kinds of operators left float.
    """

    calibrator: Calibrator
    percentile: float
    symmetric: bool
    float_kinds: tuple[str, ...]


def assemble(
    graph: GraphView,
    bench: Workbench,
    placements: Sequence[Placement],
    stats: CalibrationStats,
    choice: Choice,
    *,
    owner: tuple[str, str],
) -> QuantizationPlan:
    """The plan that follows from ``choice``; the same inputs give the same digest."""
    chosen = [p for p in placements if p.kind not in choice.float_kinds]
    ranging = Ranging(choice.calibrator, choice.percentile, choice.symmetric, tied=bench.symmetric_only)
    precisions = _precisions(bench, placements, choice)
    return assemble_plan(graph, chosen, stats, ranging, precisions, owner=owner)


def _precisions(
    bench: Workbench, placements: Sequence[Placement], choice: Choice
) -> dict[str, NodePrecision]:
    precisions = {node: NodePrecision("fp32", reason) for node, reason in bench.keep_float.items()}
    for placement in placements:
        if placement.kind in choice.float_kinds:
            reason = f"{placement.kind}: left float"
            precisions[placement.node] = NodePrecision("fp32", reason)
        else:
            precisions[placement.node] = NodePrecision("int8", f"{placement.kind}, weighted operator")
    return precisions
