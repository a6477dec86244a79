"""Operators that decode a head's numbers, told by kind and structure, never by name."""

from __future__ import annotations

from avq.types import GraphView, NodeView

_DECODING = frozenset(
    {"Sigmoid", "Softmax", "LogSoftmax", "Exp", "TopK", "ArgMax", "NonMaxSuppression", "HardSigmoid"}
)


def decoding_nodes(graph: GraphView) -> tuple[NodeView, ...]:
    """Sigmoid, Softmax, TopK and the like, in graph order.

    A Sigmoid whose every reader multiplies it with its own input is an activation (SiLU) and not among them.
    """
    return tuple(node for node in graph.nodes if node.op in _DECODING and not _is_gate(graph, node))


def _is_gate(graph: GraphView, node: NodeView) -> bool:
    readers = graph.consumers(node.outputs[0])
    return bool(readers) and all(n.op == "Mul" and node.inputs[0] in n.inputs for n, _ in readers)
