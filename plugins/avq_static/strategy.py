"""Top level of ``static``: ranges, constants, reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from avq import Workbench
from avq.toolbox import Placement, place, wanted_statistics
from avq.types import GraphView, NodePrecision, QuantizationPlan
from avq_static.options import StaticOptions
from avq_static.ranges import OWNER, Network, Ranges, Tried, report_channel_ranges
from avq_static.refine import Refinement

#: Loss (lost share plus confidence shift) from which the report names a cause.
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
            bench.note("static: effect of each option", refinement.rows)
        why = _why(ranges, best)
        if why:
            report_channel_ranges(bench, placements, why, left_float=bool(best.choice.float_kinds))
        return _explained(best, placements, why)


def _why(ranges: Ranges, best: Tried) -> str:
    """Return the loss by depthwise convolutions as text; empty when there is none."""
    if best.choice.float_kinds:
        int8, left = ranges.int8, ranges.left
        if int8 is None or left is None:
            return ""
        losses = f"in INT8 {int8.loss_compared_with(left)}, left float {left.loss_compared_with(int8)}"
        return f"{losses} (calibrator {int8.choice.ranges})"
    has_depthwise = any(p.kind == "depthwise" for p in ranges.network.placements)
    forced = ranges.options.depthwise == "int8"
    if has_depthwise and forced and best.in_boxes > _LOSS_TO_EXPLAIN:
        return f"in INT8 by option depthwise=int8, {best.loss}; depthwise=auto would measure them in float"
    return ""


def _explained(best: Tried, placements: Sequence[Placement], why: str) -> QuantizationPlan:
    kinds = best.choice.float_kinds
    reason = why or "float by option depthwise=float"
    reasons = {p.node: NodePrecision("fp32", f"{p.kind}: {reason}") for p in placements if p.kind in kinds}
    return replace(best.plan, precisions={**best.plan.precisions, **reasons})
