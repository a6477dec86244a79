"""Grids that reach a weighted operator through operators that only move values: files do not name them twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from avq.toolbox import Placement
from avq.types import Edge, GraphView, QuantizationPlan, QuantPoint

_MOVING = frozenset(
    {"Split", "Slice", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "MaxPool"}
)


def carried_points(
    points: Sequence[QuantPoint], placements: Sequence[Placement], graph: GraphView
) -> list[QuantPoint]:
    """A point for every activation without one whose values lie on a grid already, before they were moved."""
    plan = QuantizationPlan(graph.digest, tuple(points))
    found = []
    for placement in placements:
        for edge in placement.activations:
            if plan.point_for(edge.tensor, edge.node, edge.input_index) is None:
                point = _before(plan, graph, edge.tensor)
                found += [replace(point, edge=edge)] if point is not None else []
    return found


def _before(plan: QuantizationPlan, graph: GraphView, tensor: str) -> QuantPoint | None:
    while True:
        node = graph.producer(tensor)
        if node is None or node.op not in _MOVING:
            return None
        tensor = node.inputs[0]
        point = plan.by_edge.get(Edge(tensor)) or plan.point_for(tensor, node.name, 0)
        if point is not None:
            return point if point.axis is None else None
