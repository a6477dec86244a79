"""Placement of quantizers, by graph structure and never by names.

Explicit-quantization runtimes fuse these best: quantize the inputs of weighted operators, leave their bias and their
outputs float, put nothing between a convolution and its activation, quantize only the identity branch of a residual,
and use one scale for a concatenation.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from avq.types import Edge, GraphView, NodeView

Kind = Literal["dense", "depthwise", "grouped", "matmul"]
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class Placement:
    """One operator that can run in integers.

    Attributes:
        node: node name.
        kind: "dense", "depthwise" (one input channel per group), "grouped" or "matmul".
        activations: edges of its inputs that depend on the picture.
        weight: edge of its constant operand; None for a product of two activations.
        weight_axis: output-channel axis of the weight; None for one scale for the whole tensor.
    """

    node: str
    kind: Kind
    activations: tuple[Edge, ...]
    weight: Edge | None
    weight_axis: int | None


def place(graph: GraphView, keep_float: Collection[str] = ()) -> tuple[Placement, ...]:
    """Return every Conv, ConvTranspose, Gemm and MatMul that can run in integers, in graph order.

    Args:
        graph: the float graph.
        keep_float: names of nodes to leave out.
    """
    placements = []
    for node in graph.nodes:
        if node.op in _WEIGHTED and node.name not in keep_float:
            placement = _placement_of(graph, node)
            if placement is not None:
                placements.append(placement)
    return tuple(placements)


def _placement_of(graph: GraphView, node: NodeView) -> Placement | None:
    constant = [i for i in (0, 1) if graph.is_constant(node.inputs[i])]
    if len(constant) == 2 or (node.op in ("Conv", "ConvTranspose") and constant != [1]):
        return None  # nothing depends on the picture, or the weights are computed: not an integer kernel
    activations = tuple(Edge(node.inputs[i], node.name, i) for i in (0, 1) if i not in constant)
    if not constant:
        return Placement(node.name, "matmul", activations, None, None)
    index = constant[0]
    weight = Edge(node.inputs[index], node.name, index)
    return Placement(node.name, _kind(graph, node), activations, weight, _weight_axis(graph, node, index))


def _kind(graph: GraphView, node: NodeView) -> Kind:
    if node.op in ("Gemm", "MatMul"):
        return "matmul"
    group = int(node.attributes.get("group", 1))
    if group == 1:
        return "dense"
    weight = graph.constants[node.inputs[1]]
    channels_per_group = weight.shape[1] if node.op == "Conv" else weight.shape[0] // group
    return "depthwise" if channels_per_group == 1 else "grouped"


def _weight_axis(graph: GraphView, node: NodeView, index: int) -> int | None:
    """The output-channel axis of a weight; None where runtimes take one scale only."""
    rank = graph.constants[node.inputs[index]].ndim
    if node.op == "Conv":
        return 0
    if node.op == "ConvTranspose":
        return 1 if int(node.attributes.get("group", 1)) == 1 else None
    if node.op == "Gemm":
        transposed = bool(node.attributes.get("transB" if index == 1 else "transA", 0))
        return (0 if transposed else 1) if index == 1 else (1 if transposed else 0)
    return rank - 1 if index == 1 and rank == 2 else None


def residual_identity_edges(graph: GraphView, placements: Collection[Placement]) -> tuple[Edge, ...]:
    """Return the identity input of each residual Add whose other input comes directly from quantized operators.

    Directly: with activations and the like between them, but no float weighted operator. Quantizing this edge alone
    lets an integer runtime keep the skip connection in eight bits and add it inside the kernel of the convolution;
    with both inputs quantized the Add would be a kernel by itself.
    """
    quantized = {p.node for p in placements}
    edges = []
    for node in graph.nodes:
        if node.op == "Add" and not any(graph.is_constant(name) for name in node.inputs):
            index = _identity_input(graph, node, quantized)
            if index is not None:
                edges.append(Edge(node.inputs[index], node.name, index))
    return tuple(edges)


def _identity_input(graph: GraphView, add: NodeView, quantized: Collection[str]) -> int | None:
    for identity, branch in ((0, 1), (1, 0)):
        stop, start = add.inputs[identity], add.inputs[branch]
        if stop in _ancestry(graph, start, stop=stop)[0]:
            nearest = _ancestry(graph, start, stop=stop, past_weighted=False)[1]
            weighted = {name for name in nearest if graph.node(name).op in _WEIGHTED}
            return identity if weighted and weighted <= set(quantized) else None
    return None


def _ancestry(
    graph: GraphView, tensor: str, *, stop: str, past_weighted: bool = True, limit: int = 64
) -> tuple[set[str], set[str]]:
    """Return tensors and nodes between ``tensor`` and ``stop``, at most ``limit`` nodes: a block, not the network."""
    tensors, frontier = {tensor}, [tensor]
    nodes: set[str] = set()
    while frontier and len(nodes) < limit:
        node = graph.producer(frontier.pop(0))
        if node is None:
            continue
        nodes.add(node.name)
        if node.op in _WEIGHTED and not past_weighted:
            continue
        for name in node.inputs:
            if name and name not in tensors and not graph.is_constant(name):
                tensors.add(name)
                if name != stop:
                    frontier.append(name)
    return tensors, nodes


def concat_ties(graph: GraphView, quantized: Collection[str]) -> tuple[frozenset[str], ...]:
    """Return sets of quantized tensors that a Concat joins and that should share one scale.

    Args:
        graph: the float graph.
        quantized: names of the activation tensors that get a quantizer.
    """
    group: dict[str, str] = {}

    def root(name: str) -> str:
        while group.setdefault(name, name) != name:
            name = group[name]
        return name

    for node in graph.nodes:
        if node.op == "Concat":
            members = [t for t in (*node.inputs, *node.outputs) if t in quantized]
            for other in members[1:]:
                group[root(other)] = root(members[0])
    sets: dict[str, set[str]] = {}
    for name in list(group):
        sets.setdefault(root(name), set()).add(name)
    return tuple(frozenset(s) for s in sets.values() if len(s) > 1)


def calibration_tensors(graph: GraphView) -> list[str]:
    """Return the names of the activation tensors that a calibration pass collects, sorted."""
    placements = place(graph)
    edges = [*(e for p in placements for e in p.activations), *residual_identity_edges(graph, placements)]
    return sorted({edge.tensor for edge in edges})


# Operators that decode a head's outputs, recognised by type and structure, never by name.

_DECODING = frozenset(
    {"Sigmoid", "Softmax", "LogSoftmax", "Exp", "TopK", "ArgMax", "NonMaxSuppression", "HardSigmoid"}
)


def decoding_nodes(graph: GraphView) -> tuple[NodeView, ...]:
    """Return Sigmoid, Softmax, TopK and similar nodes that decode, in graph order.

    A Sigmoid whose every reader multiplies it with its own input is an activation (SiLU) and not among them.
    """
    return tuple(node for node in graph.nodes if node.op in _DECODING and not _is_gate(graph, node))


def _is_gate(graph: GraphView, node: NodeView) -> bool:
    readers = graph.consumers(node.outputs[0])
    return bool(readers) and all(n.op == "Mul" and node.inputs[0] in n.inputs for n, _ in readers)
