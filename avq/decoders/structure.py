"""Find the head of a network, its feature maps and their strides, from the structure of the graph."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from avq.types import AnyArray, GraphView, NodeView

#: Operators that move values without changing them.
MOVES = frozenset(
    {"Concat", "Reshape", "Transpose", "Slice", "Split", "Gather", "Squeeze", "Unsqueeze", "Flatten"}
    | {"Expand", "Identity", "Cast", "Tile"}
)

#: Half a step of a symmetric 7-bit grid, with a margin.
_MIN_LEVELS = 100


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
    """Return (width, height) of the picture input; None unless the graph has one input (1, 3, h, w)."""
    if len(graph.inputs) != 1 or len(graph.inputs[0].shape) != 4:
        return None
    height, width = graph.inputs[0].shape[2:]
    return (width, height) if min(width, height) > 0 else None


def is_projection(graph: GraphView, node: NodeView) -> bool:
    """Return whether a Conv or MatMul computes an expectation over bins: its weights are 0, 1, 2 ..."""
    if node.op not in ("Conv", "MatMul") or len(node.inputs) < 2:
        return False
    weight = graph.constants.get(node.inputs[1])
    return weight is not None and weight.ndim <= 4 and _counts_up(weight)


def _counts_up(weight: AnyArray) -> bool:
    """Return whether the weights are 0, 1, 2 ..., or those values rounded to 7 bits or more in a quantized file."""
    bins = weight.size
    if not (2 <= bins <= 64 and max(weight.shape) == bins):
        return False
    return bool(np.abs(weight.reshape(-1) - np.arange(bins)).max() <= (bins - 1) / _MIN_LEVELS)


def is_layer(graph: GraphView, node: NodeView) -> bool:
    """Return whether the node has learnt weights: a convolution or matrix product other than a fixed projection."""
    if node.op in ("Conv", "ConvTranspose", "Gemm"):
        return not is_projection(graph, node)
    return (
        node.op == "MatMul"
        and any(graph.is_constant(name) for name in node.inputs)
        and not is_projection(graph, node)
    )


def head_region(graph: GraphView) -> tuple[tuple[NodeView, ...], tuple[NodeView, ...]]:
    """Return (last layers, nodes after them), between the last layers and the outputs."""
    return region_of(graph, graph.output_names)


def region_of(
    graph: GraphView, tensors: tuple[str, ...]
) -> tuple[tuple[NodeView, ...], tuple[NodeView, ...]]:
    """Return the region of ``head_region`` before some tensors; both parts in topological order."""
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
    """Return node -> reason to stay float, for the last layers of the head and the nodes after them."""
    layers, after = head_region(graph)
    reasons = {
        node.name: f"bare head layer of the {family} head: its output is read as numbers" for node in layers
    }
    return reasons | {node.name: f"decodes boxes and scores of the {family} head" for node in after}


def nodes_after(graph: GraphView, started: tuple[NodeView, ...]) -> tuple[NodeView, ...]:
    """Return ``started`` and every node that depends on them, in topological order."""
    reached = {node.name for node in started}
    written = {name for node in started for name in node.outputs}
    for node in graph.nodes:
        if node.name in reached or written.intersection(node.inputs):
            reached.add(node.name)
            written.update(node.outputs)
    return tuple(node for node in graph.nodes if node.name in reached)


def levels(graph: GraphView, tensors: tuple[str, ...] | None = None) -> tuple[Level, ...]:
    """Return the feature maps of the head, finest first, from the output sizes of its last convolutions."""
    size = input_size_px(graph)
    layers, _ = head_region(graph) if tensors is None else region_of(graph, tensors)
    shapes = {graph.shape(node.outputs[0]) for node in layers if node.op in ("Conv", "ConvTranspose")}
    sizes = {shape[2:] for shape in shapes if shape is not None and len(shape) == 4}
    if size is None or not sizes:
        return ()
    maps = [Level(h, w, stride_px(size, (w, h))) for h, w in sizes]
    return tuple(sorted(maps, key=lambda level: level.stride_px))


def stride_px(input_px: tuple[int, int], cells: tuple[int, int]) -> int:
    """Return the stride as a power of two: the exact one, with odd sizes rounded up, else the nearest."""
    for exponent in range(10):
        stride: int = 2**exponent
        if all(-(-pixels // stride) == count for pixels, count in zip(input_px, cells, strict=True)):
            return stride
    return int(2 ** round(float(np.log2(max(input_px[1] / cells[1], 1.0)))))


def total_cells(maps: tuple[Level, ...]) -> int:
    """Return the number of cells of all feature maps."""
    return sum(level.cells for level in maps)


def keypoint_columns(graph: GraphView) -> int:
    """Return the number of keypoint values per box by the metadata key "kpt_shape"; 0 without it."""
    shape = re.findall(r"\d+", graph.metadata.get("kpt_shape", ""))
    return math.prod(int(size) for size in shape) if shape else 0


def class_name_count(graph: GraphView) -> int:
    """Return the number of class names in the metadata of the model; 0 without names."""
    text = graph.metadata.get("names", "")
    return text.count(",") + 1 if text.strip() else 0
