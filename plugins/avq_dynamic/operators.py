"""Which operators gain from scales found at run time, and what their points are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from avq.toolbox import Placement, weight_point
from avq.types import Edge, GraphView, NodePrecision, QuantizationPlan, QuantPoint

_KINDS = {
    "weights": "product with weights, activation scale found at run time",
    "attention": "product of two activations, both scales found at run time",
    "convolutions": "convolution, activation scale found at run time",
}


def kind_of(graph: GraphView, placement: Placement) -> str:
    """ "weights", "attention" or "convolutions"; '' for a product that no integer kernel computes."""
    node = graph.node(placement.node)
    if node.op in ("Conv", "ConvTranspose"):
        return "convolutions"
    if node.op == "Gemm" and not _plain_gemm(node.attributes, placement):
        return ""
    if placement.weight is None:
        return "attention"
    weight = graph.constants[placement.weight.tensor]
    return "weights" if placement.weight.input_index == 1 and weight.ndim >= 2 else ""


def _plain_gemm(attributes: Mapping[str, object], placement: Placement) -> bool:
    turned = attributes.get("transA", 0) or (placement.weight is None and attributes.get("transB", 0))
    return not turned and attributes.get("beta", 1.0) == 1.0


def dynamic_point(edge: Edge) -> QuantPoint:
    """Unsigned, with scale and zero point of each picture's own; the stored ones are not used."""
    return QuantPoint(
        edge, np.asarray(1.0, np.float32), np.asarray(0, np.int64), signed=False, mode="dynamic"
    )


def dynamic_plan(
    graph: GraphView,
    chosen: Sequence[Placement],
    precisions: Mapping[str, NodePrecision],
    *,
    owner: tuple[str, str],
) -> QuantizationPlan:
    """The plan with ``chosen`` in INT8: dynamic activations, weights by their largest magnitude."""
    points = [dynamic_point(edge) for edge in dict.fromkeys(e for p in chosen for e in p.activations)]
    points += [
        weight_point(p.weight, graph.constants[p.weight.tensor], p.weight_axis)
        for p in chosen
        if p.weight is not None
    ]
    return QuantizationPlan(
        graph_digest=graph.digest,
        points=tuple(sorted(points, key=lambda point: point.edge)),
        precisions=precisions,
        owner=owner[0],
        owner_version=owner[1],
    )


def precisions(
    graph: GraphView,
    placements: Sequence[Placement],
    kinds: Collection[str],
    keep_float: Mapping[str, str],
    why_not: Mapping[str, str],
) -> dict[str, NodePrecision]:
    """Every weighted operator's precision with its reason."""
    named = {node: NodePrecision("fp32", reason) for node, reason in keep_float.items()}
    for placement in placements:
        kind = kind_of(graph, placement)
        if kind in kinds:
            named[placement.node] = NodePrecision("int8", _KINDS[kind])
        else:
            reason = why_not.get(kind, "no integer kernel computes this form of the product")
            named[placement.node] = NodePrecision("fp32", reason)
    return named
