"""Complete the quantization of a side file: grids that move with their values, and ranges from calibration."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from avq.builder.encodings.read import CACHE_DIALECT, read_side_file
from avq.builder.lift.findings import finding
from avq.builder.lift.pitfalls import graph_findings
from avq.hookspecs import CalibrationStats
from avq.toolbox import Placement, activation_point, place, weight_point
from avq.types import Edge, GraphView, ImportedQuantization, QuantizationPlan, QuantPoint

_MOVING = frozenset(
    {"Split", "Slice", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "MaxPool"}
)


def moved_points(
    points: Sequence[QuantPoint], placements: Sequence[Placement], graph: GraphView
) -> list[QuantPoint]:
    """Points of activations that operators only moved: files name their tensors once, before the move."""
    plan = QuantizationPlan(graph.digest, tuple(points))
    moved = []
    for placement in placements:
        for edge in placement.activations:
            if plan.point_for(edge.tensor, edge.node, edge.input_index) is None:
                point = _before(plan, graph, edge.tensor)
                moved += [replace(point, edge=edge)] if point is not None else []
    return moved


def _before(plan: QuantizationPlan, graph: GraphView, tensor: str) -> QuantPoint | None:
    while True:
        node = graph.producer(tensor)
        if node is None or node.op not in _MOVING:
            return None
        tensor = node.inputs[0]
        point = plan.by_edge.get(Edge(tensor)) or plan.point_for(tensor, node.name, 0)
        if point is not None:
            return point if point.axis is None else None


Collect = Callable[[Sequence[str]], CalibrationStats]
_CALIBRATED = (
    "nothing to do: activations have the range measured on the pictures, weights their largest magnitude"
)


@dataclass(frozen=True)
class _Open:
    """A weighted operator and its edges without a grid."""

    placement: Placement
    edges: tuple[Edge, ...]


def side_file_for_plan(
    path: Path,
    graph: GraphView,
    keep_float: Collection[str],
    collect: Collect | None,
    *,
    symmetric_only: bool,
) -> ImportedQuantization:
    """Read a side file for a strategy: matched with its graph, completed, with findings.

    Args:
        path: a TensorRT calibration cache or AIMET encodings.
        graph: the folded float graph.
        keep_float: operators that no strategy quantizes. Encodings override them; caches name no operators.
        collect: histograms over the calibration pictures; None where there are none.
        symmetric_only: the target supports signed grids around zero only.

    Returns:
        Points on edges of ``graph``, and findings by code.

    Raises:
        CalibrationError: the file cannot be read; names file:line.
    """
    foreign = read_side_file(path, graph)
    if foreign.dialect == CACHE_DIALECT:
        foreign = _without_head(foreign, keep_float)
    moved = moved_points(foreign.points, place(graph, keep_float), graph)
    foreign = completed(
        replace(foreign, points=(*foreign.points, *moved)),
        graph,
        keep_float,
        collect,
        symmetric_only=symmetric_only,
    )
    around = graph_findings(graph, foreign.points, {}) if foreign.points else []
    return replace(foreign, findings=tuple(sorted((*foreign.findings, *around), key=lambda f: f.code)))


def completed(
    foreign: ImportedQuantization,
    graph: GraphView,
    keep_float: Collection[str],
    collect: Collect | None,
    *,
    symmetric_only: bool,
) -> ImportedQuantization:
    """Add the missing points of weighted operators, calibrated by ``collect``; a finding names the operators."""
    left = _open(foreign, graph, keep_float)
    if not left or not foreign.points:
        return foreign
    if collect is not None:
        symmetric = symmetric_only or all(p.symmetric for p in foreign.points)
        filled = _filled(left, graph, collect, symmetric=symmetric)
        foreign = replace(foreign, points=(*foreign.points, *filled))
    incomplete = finding(
        "AVQ-Q58", [o.placement.node for o in left], fix=None if collect is None else _CALIBRATED
    )
    return replace(foreign, findings=(*foreign.findings, incomplete))


def _without_head(foreign: ImportedQuantization, keep_float: Collection[str]) -> ImportedQuantization:
    head = list(dict.fromkeys(p.edge.node for p in foreign.points if p.edge.node in keep_float))
    if not head:
        return foreign
    points = tuple(p for p in foreign.points if p.edge.node not in keep_float)
    return replace(foreign, points=points, findings=(*foreign.findings, finding("AVQ-Q60", head)))


def _open(foreign: ImportedQuantization, graph: GraphView, keep_float: Collection[str]) -> list[_Open]:
    plan = QuantizationPlan(graph.digest, foreign.points)
    every = [_Open(p, _missing(plan, p)) for p in place(graph, keep_float)]
    return [o for o in every if o.edges]


def _missing(plan: QuantizationPlan, placement: Placement) -> tuple[Edge, ...]:
    edges = [*placement.activations, *([placement.weight] if placement.weight else [])]
    return tuple(e for e in edges if plan.point_for(e.tensor, e.node, e.input_index) is None)


def _filled(
    left: Sequence[_Open], graph: GraphView, collect: Collect, *, symmetric: bool
) -> list[QuantPoint]:
    weights = {o.placement.weight: o.placement.weight_axis for o in left if o.placement.weight in o.edges}
    activations = [edge for o in left for edge in o.edges if edge not in weights]
    points = [
        weight_point(e, graph.constants[e.tensor], axis) for e, axis in weights.items() if e is not None
    ]
    if activations:
        stats = collect(sorted({edge.tensor for edge in activations}))
        for edge in activations:
            clip = stats.range(edge.tensor, "minmax", symmetric=symmetric)
            points.append(activation_point(edge, clip, symmetric=symmetric))
    return points
