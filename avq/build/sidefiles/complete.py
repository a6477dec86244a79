"""What a side file leaves open, filled in from calibration, and said."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from avq.build.sidefiles.pitfalls import finding
from avq.hookspecs import CalibrationStats
from avq.toolbox import Placement, activation_point, place, weight_point
from avq.types import Edge, Foreign, GraphView, QuantizationPlan, QuantPoint

Collect = Callable[[Sequence[str]], CalibrationStats]


def complete(
    foreign: Foreign, graph: GraphView, keep_float: Collection[str], collect: Collect, *, symmetric: bool
) -> Foreign:
    """``foreign`` with grids for weighted operators that it does not name, and a finding that lists them.

    Activations get the range they had on the calibration pictures (minmax), weights their largest magnitude
    per output channel. Operators in ``keep_float`` stay as the file has them.

    Args:
        foreign: what the side file says.
        graph: its float graph.
        keep_float: operators that no strategy quantizes.
        collect: histograms of tensors over the calibration pictures.
        symmetric: grids of activations are signed around zero.
    """
    named = QuantizationPlan(graph.digest, foreign.points)
    open_ones = {p.node: _missing(named, p) for p in place(graph, keep_float)}
    open_ones = {node: edges for node, edges in open_ones.items() if edges}
    if not open_ones:
        return foreign
    placements = {p.node: p for p in place(graph, keep_float)}
    points = _filled(
        [(placements[node], edges) for node, edges in open_ones.items()], graph, collect, symmetric
    )
    taken = {p.edge for p in foreign.points}
    said = finding("AVQ-Q58", list(open_ones))
    return replace(
        foreign,
        points=(*foreign.points, *(p for p in points if p.edge not in taken)),
        findings=(*foreign.findings, said),
    )


def _missing(plan: QuantizationPlan, placement: Placement) -> list[Edge]:
    edges = [*placement.activations, *([placement.weight] if placement.weight else [])]
    return [e for e in edges if plan.point_for(e.tensor, e.node, e.input_index) is None]


def _filled(
    open_ones: Sequence[tuple[Placement, Sequence[Edge]]], graph: GraphView, collect: Collect, symmetric: bool
) -> list[QuantPoint]:
    activations = sorted({e for p, edges in open_ones for e in edges if e != p.weight})
    stats = collect(sorted({edge.tensor for edge in activations})) if activations else None
    points = (
        []
        if stats is None
        else [
            activation_point(e, stats.range(e.tensor, "minmax", symmetric=symmetric), symmetric=symmetric)
            for e in activations
        ]
    )
    weights = [
        (p.weight, p.weight_axis) for p, edges in open_ones if p.weight is not None and p.weight in edges
    ]
    return points + [weight_point(edge, graph.constants[edge.tensor], axis) for edge, axis in weights]
