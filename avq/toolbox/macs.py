"""Multiply-adds per node, and the share of them a plan runs in 8-bit integers."""

from __future__ import annotations

from math import prod

from avq.types import GraphView, NodeView, QuantizationPlan

COMPUTE_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def macs_by_node(graph: GraphView) -> dict[str, int]:
    """node name -> multiply-adds of one inference, for convolutions and matrix products of known shape.

    A node whose shapes are not static is left out.
    """
    counted = ((node.name, _macs(graph, node)) for node in graph.nodes if node.op in COMPUTE_OPS)
    return {name: count for name, count in counted if count is not None}


def int8_mac_share(graph: GraphView, plan: QuantizationPlan) -> float:
    """Multiply-adds whose data AND weight inputs are integers of at most 8 bits, over all; 0 without any."""
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
