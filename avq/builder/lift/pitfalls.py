"""Pitfalls that follow from the graph and its points together, not from a single quantizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from avq.builder.lift.findings import finding
from avq.builder.lift.grid import Grid
from avq.toolbox import decoding_nodes, place
from avq.types import Edge, Finding, GraphView, NodeView, QuantPoint

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# An input whose whole range is less than so many levels of the common grid is as good as gone.
_FEW_LEVELS = 16
# Integer kernels take scales that agree to float32 rounding of a product.
_SAME_SCALE = 1e-4


def graph_findings(
    graph: GraphView, points: Sequence[QuantPoint], biases: Mapping[str, Grid]
) -> list[Finding]:
    """Find the pitfalls of points on their graph."""
    if not points:
        return [finding("AVQ-Q01")]
    scene = _PlannedGraph(graph, points, biases)
    found = []
    for code, check in _CHECKS.items():
        places = list(dict.fromkeys(check(scene)))
        if places:
            found.append(finding(code, places))
    return found


@dataclass(frozen=True)
class _PlannedGraph:
    graph: GraphView
    points: Sequence[QuantPoint]
    biases: Mapping[str, Grid]

    @cached_property
    def by_edge(self) -> dict[Edge, QuantPoint]:
        return {point.edge: point for point in self.points}

    def seen_by(self, node: NodeView, index: int) -> QuantPoint | None:
        """The point through which a node reads one input."""
        if index >= len(node.inputs) or not node.inputs[index]:
            return None
        tensor = node.inputs[index]
        return self.by_edge.get(Edge(tensor, node.name, index)) or self.by_edge.get(Edge(tensor))

    @cached_property
    def activations(self) -> list[QuantPoint]:
        return [p for p in self.points if p.edge.tensor not in self.graph.constants]

    @cached_property
    def weighted(self) -> list[tuple[NodeView, QuantPoint | None, QuantPoint | None]]:
        """(operator, point of its data, point of its weight)."""
        nodes = [n for n in self.graph.nodes if n.op in _WEIGHTED]
        return [(n, self.seen_by(n, 0), self.seen_by(n, 1)) for n in nodes]


def _name(point: QuantPoint) -> str:
    return point.edge.tensor


def _signed_offset(scene: _PlannedGraph) -> Iterator[str]:
    for point in scene.points:
        if point.signed and np.any(point.zero_point):
            yield f"{_name(point)} ({int(np.ravel(point.zero_point)[0])})"


def _unsigned_offset(scene: _PlannedGraph) -> Iterator[str]:
    for point in scene.points:
        if not point.signed and np.any(point.zero_point != 1 << (point.bits - 1)):
            yield f"{_name(point)} ({int(np.ravel(point.zero_point)[0])})"


def _lopsided(scene: _PlannedGraph) -> Iterator[str]:
    for point in scene.activations:
        below = np.min(point.zero_point) - point.qmin
        above = point.qmax - np.max(point.zero_point)
        if below > 0 and above > 0 and abs(int(below) - int(above)) > 1:
            yield f"{_name(point)} ({below} levels below zero, {above} above)"


def _depthwise(scene: _PlannedGraph) -> Iterator[str]:
    depthwise = {p.node for p in place(scene.graph) if p.kind == "depthwise"}
    for node, _, weight in scene.weighted:
        if weight is not None and not weight.scale.ndim and node.name in depthwise:
            yield node.name


def _input_channels(scene: _PlannedGraph) -> Iterator[str]:
    for node, _, weight in scene.weighted:
        shape = scene.graph.shape(node.inputs[1])
        if weight is None or weight.axis is None or weight.block_size or shape is None:
            continue
        if weight.axis % len(shape) != _output_axis(node, len(shape)):
            yield f"{node.inputs[1]} (axis {weight.axis})"


def _output_axis(node: NodeView, rank: int) -> int:
    if node.op == "Conv":
        return 0
    if node.op == "ConvTranspose":
        return 1
    transposed = node.op == "Gemm" and bool(node.attributes.get("transB", 0))
    return 0 if transposed else rank - 1


def _per_channel(scene: _PlannedGraph) -> Iterator[str]:
    return (_name(p) for p in scene.activations if p.scale.ndim)


def _norms(scene: _PlannedGraph) -> Iterator[str]:
    for node, _, weight in scene.weighted:
        readers = scene.graph.consumers(node.outputs[0])
        if weight is not None and any(n.op == "BatchNormalization" for n, _ in readers):
            yield node.name


def _bias_scales(scene: _PlannedGraph) -> Iterator[str]:
    for node, data, weight in scene.weighted:
        if data is None or weight is None or len(node.inputs) < 3:
            continue
        bias = scene.seen_by(node, 2)
        scale = bias.scale if bias is not None else None
        if scale is None and node.inputs[2] in scene.biases:
            scale = scene.biases[node.inputs[2]].scale
        if scale is not None and not _agree(scale, data.scale * weight.scale):
            yield node.inputs[2]


def _agree(one: np.ndarray, other: np.ndarray) -> bool:
    try:
        return bool(np.allclose(one, other, rtol=_SAME_SCALE, atol=0))
    except ValueError:
        return False


def _left_float(scene: _PlannedGraph) -> Iterator[str]:
    return (node.name for node, data, weight in scene.weighted if data is None or weight is None)


def _concats(scene: _PlannedGraph) -> Iterator[tuple[NodeView, list[QuantPoint], QuantPoint | None]]:
    for node in scene.graph.nodes:
        if node.op == "Concat":
            seen = [scene.seen_by(node, i) for i in range(len(node.inputs))]
            yield node, [p for p in seen if p is not None], scene.by_edge.get(Edge(node.outputs[0]))


def _unlike_concats(scene: _PlannedGraph) -> Iterator[str]:
    for node, inputs, output in _concats(scene):
        scales = {p.scale.tobytes() for p in inputs} | ({output.scale.tobytes()} if output else set())
        if len(scales) > 1:
            yield node.name


def _collapsing(scene: _PlannedGraph) -> Iterator[str]:
    """Concats one of whose inputs keeps only a few levels on the common grid."""
    for node, inputs, output in _concats(scene):
        if output is None or output.scale.ndim:
            continue
        reach = [float((p.qmax - p.qmin) * np.max(p.scale)) for p in inputs]
        if reach and min(reach) / float(output.scale) < _FEW_LEVELS:
            yield f"{node.name} ({min(reach) / float(output.scale):.1f} levels for one input)"


def _decoding(scene: _PlannedGraph) -> Iterator[str]:
    for node in decoding_nodes(scene.graph):
        if scene.seen_by(node, 0) is not None or any(Edge(o) in scene.by_edge for o in node.outputs):
            yield f"{node.op} '{node.name}'"


def _end_levels(scene: _PlannedGraph) -> Iterator[str]:
    """Weights that use -128, or were scaled by amax / 128 so that the largest is clipped."""
    for point in scene.points:
        weight = scene.graph.constants.get(point.edge.tensor)
        if weight is None or not point.symmetric or point.bits != 8 or point.block_size:
            continue
        steps = np.asarray(weight, np.float64) / _along(point, weight.ndim)
        if np.max(steps, initial=0) > 127.5 or np.min(steps, initial=0) < -127.5:
            yield _name(point)


def _half_range(scene: _PlannedGraph) -> Iterator[str]:
    for point in scene.points:
        weight = scene.graph.constants.get(point.edge.tensor)
        if weight is None or weight.ndim < 2 or point.bits != 8 or point.block_size or not point.symmetric:
            continue
        if np.max(np.abs(np.asarray(weight, np.float64) / _along(point, weight.ndim)), initial=0) <= 64.5:
            yield _name(point)


def _along(point: QuantPoint, rank: int) -> np.ndarray:
    if point.axis is None:
        return point.scale
    return point.scale.reshape([-1 if i == point.axis % rank else 1 for i in range(rank)])


_CHECKS: dict[str, Callable[[_PlannedGraph], Iterator[str]]] = {
    "AVQ-Q02": _signed_offset,
    "AVQ-Q03": _unsigned_offset,
    "AVQ-Q04": _lopsided,
    "AVQ-Q05": _depthwise,
    "AVQ-Q06": _per_channel,
    "AVQ-Q21": _norms,
    "AVQ-Q22": _bias_scales,
    "AVQ-Q23": _left_float,
    "AVQ-Q24": _unlike_concats,
    "AVQ-Q25": _collapsing,
    "AVQ-Q26": _decoding,
    "AVQ-Q27": _end_levels,
    "AVQ-Q28": _half_range,
    "AVQ-Q43": _input_channels,
}
