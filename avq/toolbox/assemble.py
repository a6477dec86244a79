"""Assembly of plans from placements, statistics and one choice per operator."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from avq.hookspecs import CalibrationStats
from avq.toolbox.grids import WeightMethod, activation_point, weight_point
from avq.toolbox.placement import Placement, concat_ties, residual_identity_edges
from avq.types import (
    Calibrator,
    Edge,
    GraphView,
    NodePrecision,
    NodeView,
    QuantizationPlan,
    QuantPoint,
    Range,
    StatRequest,
)


@dataclass(frozen=True)
class Ranging:
    """Settings that turn activation ranges and weights into grids.

    Attributes:
        calibrator: method that chooses activation ranges.
        percentile: percent of values inside the range, in (50, 100], for calibrator "percentile".
        symmetric: True for signed grids around zero, False for unsigned ones with a zero point.
        tied: tensors that a Concat joins share one scale, as targets with symmetric grids only need it.
        weight_bits: bits of weights, 1..16.
        weights: method that chooses scales of weights.
    """

    calibrator: Calibrator
    percentile: float = 99.99
    symmetric: bool = False
    tied: bool = False
    weight_bits: int = 8
    weights: WeightMethod = "auto"


def wanted_statistics(graph: GraphView, placements: Collection[Placement]) -> list[StatRequest]:
    """Return one request per activation tensor that a plan over ``placements`` may quantize."""
    edges = activation_edges(graph, placements)
    return [StatRequest(tensor) for tensor in dict.fromkeys(e.tensor for e in edges)]


def activation_edges(graph: GraphView, placements: Collection[Placement]) -> list[Edge]:
    """Return the activation edges that get a quantizer when ``placements`` run in integers, each once."""
    edges = [*(e for p in placements for e in p.activations), *residual_identity_edges(graph, placements)]
    return list(dict.fromkeys(edges))


def assemble(
    graph: GraphView,
    chosen: Sequence[Placement],
    stats: CalibrationStats,
    ranging: Ranging,
    precisions: Mapping[str, NodePrecision],
    *,
    owner: tuple[str, str],
) -> QuantizationPlan:
    """Return the plan with ``chosen`` in integers; the same inputs give the same digest.

    Args:
        graph: the float graph.
        chosen: operators that run in integers.
        stats: histograms of every tensor of ``wanted_statistics(graph, chosen)``.
        ranging: how ranges become grids.
        precisions: node name -> precision with reason, stored in the plan unchanged.
        owner: name and version of the strategy.

    Returns:
        A plan with points sorted by edge and weights of ``ranging.weight_bits`` bits.

    Raises:
        CalibrationError: a tensor has no histogram in ``stats``, or held NaN or Inf.
    """
    edges = activation_edges(graph, chosen)
    ties = concat_ties(graph, {e.tensor for e in edges}) if ranging.tied else ()
    ranges = _ranges(stats, sorted({e.tensor for e in edges}), ties, ranging)
    points = [activation_point(e, ranges[e.tensor], symmetric=ranging.symmetric) for e in edges]
    points += _weights(graph, chosen, ranging)
    return QuantizationPlan(
        graph_digest=graph.digest,
        points=tuple(sorted(points, key=lambda p: p.edge)),
        ties=tuple(frozenset(e for e in edges if e.tensor in tie) for tie in ties),
        precisions=precisions,
        owner=owner[0],
        owner_version=owner[1],
    )


def _ranges(
    stats: CalibrationStats, tensors: Sequence[str], ties: Sequence[frozenset[str]], ranging: Ranging
) -> dict[str, Range]:
    method, symmetric, percentile = ranging.calibrator, ranging.symmetric, ranging.percentile
    ranges = {t: stats.range(t, method, symmetric=symmetric, percentile=percentile) for t in tensors}
    for tie in ties:
        shared = stats.merged_range(sorted(tie), method, symmetric=symmetric, percentile=percentile)
        ranges.update(dict.fromkeys(tie, shared))
    return ranges


def _weights(graph: GraphView, chosen: Sequence[Placement], ranging: Ranging) -> list[QuantPoint]:
    bits, method = ranging.weight_bits, ranging.weights
    return [
        weight_point(p.weight, graph.constants[p.weight.tensor], p.weight_axis, bits=bits, method=method)
        for p in chosen
        if p.weight is not None
    ]


# Multiply-adds per node, and the share of them a plan runs in 8-bit integers.

COMPUTE_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def macs_by_node(graph: GraphView) -> dict[str, int]:
    """Return the multiply-adds of one inference by node name, for convolutions and matrix products.

    Nodes whose shapes are not static are left out.
    """
    counted = ((node.name, _macs(graph, node)) for node in graph.nodes if node.op in COMPUTE_OPS)
    return {name: count for name, count in counted if count is not None}


def int8_mac_share(graph: GraphView, plan: QuantizationPlan) -> float:
    """Return the share of multiply-adds, 0..1, whose data AND weights are integers of at most 8 bits.

    The share is 0 for a graph without multiply-adds.
    """
    macs = macs_by_node(graph)
    quantized = sum(count for name, count in macs.items() if _runs_in_int8(graph.node(name), plan))
    return quantized / max(sum(macs.values()), 1)


def _runs_in_int8(node: NodeView, plan: QuantizationPlan) -> bool:
    points = [plan.point_for(node.inputs[i], node.name, i) for i in (0, 1)]
    return all(p is not None and p.bits <= 8 and p.mode != "weight-only" for p in points)


def _macs(graph: GraphView, node: NodeView) -> int | None:
    data, weight = graph.shape(node.inputs[0]), graph.shape(node.inputs[1])
    out = graph.shape(node.outputs[0])
    if weight is None:
        return None
    if node.op == "ConvTranspose":  # every input pixel meets weight[ci] of shape (C/group, kernel...)
        return None if data is None else prod(data) * prod(weight[1:])
    if out is None:
        return None
    if node.op == "Conv":
        return prod(out) * prod(weight[1:])
    return prod(out) * _inner(node, weight)


def _inner(node: NodeView, weight: tuple[int, ...]) -> int:
    """Length of the summed axis of Gemm and MatMul."""
    if node.op == "Gemm" and node.attributes.get("transB", 0):
        return weight[1]
    return weight[-2] if len(weight) > 1 else weight[0]
