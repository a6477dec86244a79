"""Fusion groups: operators that a runtime runs as one kernel change precision together.

A group starts at a weighted operator and includes the operators that runtimes fuse into it: bias, activation (SiLU
and hard-swish as a whole, though they are several nodes) and the residual add after it. Operators that only move data
(concatenation, pooling, resizing, slicing) belong to no group: a boundary passes through them from the groups that
write to the group that reads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import prod

from avq.toolbox import Placement, macs_by_node
from avq.types import GraphView, NodeView

# fmt: off
_POINTWISE = frozenset((
    "Add", "Sub", "Mul", "Div", "Neg", "Abs", "Sqrt", "Pow", "Exp", "Erf", "Relu", "LeakyRelu",
    "PRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Clip", "Sigmoid", "HardSigmoid",
    "HardSwish", "Tanh", "Softplus", "Softsign", "Mish", "Gelu", "BatchNormalization", "Identity",
    "Max", "Min",
))
# fmt: on
#: Index for everything that is always float: the decoded head, nodes kept float, the graph's outputs.
OUTSIDE = -1


@dataclass(frozen=True)
class Group:
    """Operators that change precision together.

    Attributes:
        name: name of its weighted operator.
        kind: kind of its weighted operator.
        nodes: names of all its nodes.
        placements: operators that can run in integers.
        macs: multiply-adds of one inference.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    placements: tuple[Placement, ...]
    macs: int


@dataclass(frozen=True)
class Boundary:
    """A tensor between two groups; crossing it in different precisions costs a conversion.

    Attributes:
        writer: index of the group that writes; OUTSIDE for always float.
        reader: index of the group that reads; OUTSIDE for always float.
        elements: number of values that cross it.
    """

    writer: int
    reader: int
    elements: int


def fusion_groups(graph: GraphView, placements: Sequence[Placement]) -> tuple[Group, ...]:
    """Return one group per placement, in graph order."""
    owner = owners(graph, placements)
    macs = macs_by_node(graph)
    members: dict[int, list[str]] = {}
    for node in graph.nodes:
        if node.name in owner:
            members.setdefault(owner[node.name], []).append(node.name)
    return tuple(
        Group(p.node, p.kind, tuple(members[i]), (p,), macs.get(p.node, 0)) for i, p in enumerate(placements)
    )


def owners(graph: GraphView, placements: Sequence[Placement]) -> dict[str, int]:
    """Return node -> index of its group, for every node that is fused into one."""
    owner = {p.node: i for i, p in enumerate(placements)}
    for node in graph.nodes:
        if node.op in _POINTWISE and node.name not in owner:
            writers = {owner.get(w.name) if w else None for w in _writers(graph, node)}
            known = {w for w in writers if w is not None}
            # A pointwise operator of one group is part of it; a residual add goes with the later branch.
            if known and (len(writers) == 1 or node.op == "Add"):
                owner[node.name] = max(known)
    return owner


def _writers(graph: GraphView, node: NodeView) -> list[NodeView | None]:
    return [graph.producer(name) for name in node.inputs if name and not graph.is_constant(name)]


def boundaries(graph: GraphView, placements: Sequence[Placement]) -> tuple[Boundary, ...]:
    """Return every tensor that one group writes and another group, or the float remainder, reads."""
    owner = owners(graph, placements)
    crossing: dict[tuple[int, int], int] = {}
    for node in graph.nodes:
        if node.name not in owner and _moves(node, owner):
            continue
        reader = owner.get(node.name, OUTSIDE)
        for tensor in {name for name in node.inputs if name and not graph.is_constant(name)}:
            for writer, elements in _sources(graph, tensor, owner):
                if writer != reader:
                    crossing[writer, reader] = crossing.get((writer, reader), 0) + elements
    return tuple(Boundary(w, r, n) for (w, r), n in crossing.items())


def _moves(node: NodeView, owner: Collection[str]) -> bool:
    return node.name not in owner and node.op not in ("Conv", "ConvTranspose", "Gemm", "MatMul")


def _sources(graph: GraphView, tensor: str, owner: dict[str, int]) -> Iterable[tuple[int, int]]:
    """Yield (group, elements) of the writers of ``tensor``, through operators that only move data."""
    visited, frontier = {tensor}, [tensor]
    while frontier:
        name = frontier.pop()
        node = graph.producer(name)
        if node is not None and _moves(node, owner):
            for source in node.inputs:
                if source and source not in visited and not graph.is_constant(source):
                    visited.add(source)
                    frontier.append(source)
        else:
            yield (OUTSIDE if node is None else owner.get(node.name, OUTSIDE)), _elements(graph, name)


def _elements(graph: GraphView, tensor: str) -> int:
    shape = graph.shape(tensor)
    return prod(shape) if shape else 0
