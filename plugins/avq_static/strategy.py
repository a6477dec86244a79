"""The strategy ``static``, top to bottom: ranges, constants, reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from avq import Workbench
from avq.toolbox import Placement, place, wanted_statistics
from avq.types import GraphView, NodePrecision, QuantizationPlan
from avq_static.options import StaticOptions
from avq_static.ranges import OWNER, Network, Ranges, Tried, tell
from avq_static.refine import Refinement

#: From here on a plan's loss wants a cause: lost share plus confidence shift.
_LOSS_TO_EXPLAIN = 0.02


class StaticQuantizer:
    """The strategy ``static``."""

    name, version = OWNER
    options = StaticOptions

    def plan(self, graph: GraphView, bench: Workbench, options: StaticOptions) -> QuantizationPlan:
        placements = place(graph, bench.keep_float)
        network = Network(graph, bench, placements, bench.collect(wanted_statistics(graph, placements)))
        ranges = Ranges(network, options)
        refinement = Refinement(network, ranges.search(bench), options)
        best = refinement.run()
        if refinement.rows:
            bench.note("static: what each option changed", refinement.rows)
        why = _why(ranges, best)
        if why:
            tell(bench, placements, why)
        return _explained(best, placements, why)


def _why(ranges: Ranges, best: Tried) -> str:
    """What depthwise convolutions cost, where they cost anything; empty otherwise."""
    if best.choice.float_kinds:
        int8, left = ranges.int8, ranges.left
        if int8 is None or left is None:
            return ""
        told = f"in INT8 {int8.loss_beside(left)}, left float {left.loss_beside(int8)}"
        return f"{told} (calibrator {int8.choice.ranges})"
    has_depthwise = any(p.kind == "depthwise" for p in ranges.network.placements)
    forced = ranges.options.depthwise == "int8"
    if has_depthwise and forced and best.in_boxes > _LOSS_TO_EXPLAIN:
        return f"in INT8, as asked for, {best.loss}; depthwise=auto would measure them in float"
    return ""


def _explained(best: Tried, placements: Sequence[Placement], why: str) -> QuantizationPlan:
    kinds = best.choice.float_kinds
    reason = why or "float by option depthwise=float"
    reasons = {p.node: NodePrecision("fp32", f"{p.kind}: {reason}") for p in placements if p.kind in kinds}
    return replace(best.plan, precisions={**best.plan.precisions, **reasons})
