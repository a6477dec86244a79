"""From placements and statistics to a plan."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from avq import CalibrationStats, Workbench
from avq.toolbox import Placement, activation_point, concat_ties, residual_identity_edges, weight_point
from avq.types import (
    Calibrator,
    Edge,
    GraphView,
    NodePrecision,
    QuantizationPlan,
    QuantPoint,
    Range,
    StatRequest,
)


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


def wanted_statistics(graph: GraphView, placements: Collection[Placement]) -> list[StatRequest]:
    """One histogram per activation tensor that some plan over ``placements`` may quantize."""
    return [StatRequest(tensor) for tensor in dict.fromkeys(e.tensor for e in _edges(graph, placements))]


def _edges(graph: GraphView, placements: Collection[Placement]) -> list[Edge]:
    edges = [*(e for p in placements for e in p.activations), *residual_identity_edges(graph, placements)]
    return list(dict.fromkeys(edges))


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
    edges = _edges(graph, chosen)
    ties = concat_ties(graph, {e.tensor for e in edges}) if bench.symmetric_only else ()
    ranges = _ranges(stats, sorted({e.tensor for e in edges}), ties, choice)
    points = [activation_point(e, ranges[e.tensor], symmetric=choice.symmetric) for e in edges]
    points += _weights(graph, chosen)
    return QuantizationPlan(
        graph_digest=graph.digest,
        points=tuple(sorted(points, key=lambda p: p.edge)),
        ties=tuple(frozenset(e for e in edges if e.tensor in tie) for tie in ties),
        precisions=_precisions(bench, placements, choice),
        owner=owner[0],
        owner_version=owner[1],
    )


def _ranges(
    stats: CalibrationStats, tensors: Sequence[str], ties: Sequence[frozenset[str]], choice: Choice
) -> dict[str, Range]:
    method, symmetric, percentile = choice.calibrator, choice.symmetric, choice.percentile
    ranges = {t: stats.range(t, method, symmetric=symmetric, percentile=percentile) for t in tensors}
    for tie in ties:
        shared = stats.merged_range(sorted(tie), method, symmetric=symmetric, percentile=percentile)
        ranges.update(dict.fromkeys(tie, shared))
    return ranges


def _weights(graph: GraphView, chosen: Sequence[Placement]) -> list[QuantPoint]:
    return [
        weight_point(p.weight, graph.constants[p.weight.tensor], p.weight_axis)
        for p in chosen
        if p.weight is not None
    ]


def _precisions(
    bench: Workbench, placements: Sequence[Placement], choice: Choice
) -> dict[str, NodePrecision]:
    precisions = {node: NodePrecision("fp32", reason) for node, reason in bench.keep_float.items()}
    for placement in placements:
        if placement.kind in choice.float_kinds:
            reason = f"{placement.kind}: one scale for channels of very different range loses detections"
            precisions[placement.node] = NodePrecision("fp32", reason)
        else:
            precisions[placement.node] = NodePrecision("int8", f"{placement.kind}, weighted operator")
    return precisions
