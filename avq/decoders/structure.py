"""Where a network's head begins and at which strides it works, read from the graph's structure alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from avq.types import AnyArray, GraphView, NodeView

#: Operators that move numbers without changing them.
MOVES = frozenset(
    {"Concat", "Reshape", "Transpose", "Slice", "Split", "Gather", "Squeeze", "Unsqueeze", "Flatten"}
    | {"Expand", "Identity", "Cast", "Tile"}
)

# Half a step of a symmetric 7-bit grid, and some room.
_LEAST_LEVELS = 100


@dataclass(frozen=True, slots=True)
class Level:
    """One feature map of the head: its size in cells and its stride in input pixels."""

    height: int
    width: int
    stride_px: int

    @property
    def cells(self) -> int:
        return self.height * self.width


def input_size_px(graph: GraphView) -> tuple[int, int] | None:
    """(width, height) of the one picture input, None when it is not (1, 3, h, w)."""
    if len(graph.inputs) != 1 or len(graph.inputs[0].shape) != 4:
        return None
    height, width = graph.inputs[0].shape[2:]
    return (width, height) if min(width, height) > 0 else None


def is_projection(graph: GraphView, node: NodeView) -> bool:
    """Whether a Conv or MatMul only takes an expectation over bins: its weights are 0, 1, 2 ..."""
    if node.op not in ("Conv", "MatMul") or len(node.inputs) < 2:
        return False
    weight = graph.constants.get(node.inputs[1])
    return weight is not None and weight.ndim <= 4 and _counts_up(weight)


def _counts_up(weight: AnyArray) -> bool:
    """0, 1, 2 ..., or what a grid of 7 bits or more has left of them in a file that came quantized."""
    bins = weight.size
    if not (2 <= bins <= 64 and max(weight.shape) == bins):
        return False
    return bool(np.abs(weight.reshape(-1) - np.arange(bins)).max() <= (bins - 1) / _LEAST_LEVELS)


def is_layer(graph: GraphView, node: NodeView) -> bool:
    """Whether the node has learnt weights: a convolution or a matrix product, but no fixed projection."""
    if node.op in ("Conv", "ConvTranspose", "Gemm"):
        return not is_projection(graph, node)
    return (
        node.op == "MatMul"
        and any(graph.is_constant(name) for name in node.inputs)
        and not is_projection(graph, node)
    )


def head_region(graph: GraphView) -> tuple[tuple[NodeView, ...], tuple[NodeView, ...]]:
    """(bare layers, nodes after them): everything on the way back from the outputs to the last layers."""
    return region_of(graph, graph.output_names)


def region_of(
    graph: GraphView, tensors: tuple[str, ...]
) -> tuple[tuple[NodeView, ...], tuple[NodeView, ...]]:
    """Like ``head_region``, seen from some tensors; both in topological order."""
    layers: set[str] = set()
    after: set[str] = set()
    waiting = list(tensors)
    while waiting:
        node = graph.producer(waiting.pop())
        if node is None or node.name in layers or node.name in after:
            continue
        if is_layer(graph, node):
            layers.add(node.name)
            continue
        after.add(node.name)
        waiting.extend(name for name in node.inputs if name)
    ordered = graph.nodes
    return tuple(n for n in ordered if n.name in layers), tuple(n for n in ordered if n.name in after)


def head_reasons(graph: GraphView, family: str) -> Mapping[str, str]:
    """Node -> why it stays float: the bare head layers, and everything that decodes after them."""
    layers, after = head_region(graph)
    reasons = {
        node.name: f"bare head layer of the {family} head: its output is read as numbers" for node in layers
    }
    return reasons | {node.name: f"decodes boxes and scores of the {family} head" for node in after}


def nodes_after(graph: GraphView, started: tuple[NodeView, ...]) -> tuple[NodeView, ...]:
    """``started`` and every node that reads, however indirectly, what they give; in topological order."""
    reached = {node.name for node in started}
    written = {name for node in started for name in node.outputs}
    for node in graph.nodes:
        if node.name in reached or written.intersection(node.inputs):
            reached.add(node.name)
            written.update(node.outputs)
    return tuple(node for node in graph.nodes if node.name in reached)


def levels(graph: GraphView, tensors: tuple[str, ...] | None = None) -> tuple[Level, ...]:
    """The head's feature maps, finest first, from the spatial sizes of its bare convolutions."""
    size = input_size_px(graph)
    layers, _ = head_region(graph) if tensors is None else region_of(graph, tensors)
    shapes = {graph.shape(node.outputs[0]) for node in layers if node.op in ("Conv", "ConvTranspose")}
    sizes = {shape[2:] for shape in shapes if shape is not None and len(shape) == 4}
    if size is None or not sizes:
        return ()
    found = [Level(h, w, stride_px(size, (w, h))) for h, w in sizes]
    return tuple(sorted(found, key=lambda level: level.stride_px))


def stride_px(input_px: tuple[int, int], cells: tuple[int, int]) -> int:
    """The power of two that gives such a map, rounded up at odd sizes; else the nearest one."""
    for exponent in range(10):
        stride: int = 2**exponent
        if all(-(-pixels // stride) == count for pixels, count in zip(input_px, cells, strict=True)):
            return stride
    return int(2 ** round(float(np.log2(max(input_px[1] / cells[1], 1.0)))))


def total_cells(found: tuple[Level, ...]) -> int:
    return sum(level.cells for level in found)


def class_name_count(graph: GraphView) -> int:
    """How many class names the model's metadata carries; 0 when it carries none."""
    text = graph.metadata.get("names", "")
    return text.count(",") + 1 if text.strip() else 0
