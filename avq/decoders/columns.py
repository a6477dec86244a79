"""Trace one column of an output back to the convolutions: the operators on the way identify a head family.

Families with the same output shape differ in the operators of each column: raw from a convolution, a sigmoid, an
exponential, two distances, or a constant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from avq.decoders.structure import MOVES, is_layer, is_projection
from avq.types import AnyArray, GraphView, NodeView


@dataclass(frozen=True)
class Column:
    """Computation of one column.

    Attributes:
        nodes: operators between the layers and the output, nearest to the output first.
        sources: (layer, channel) pairs it is computed from; channel -1 where it is unknown.
        constants: constant arrays concatenated with or written into it.
        selected: columns of NonMaxSuppression's rows that it contains: 0 picture, 1 class, 2 box.
    """

    nodes: tuple[NodeView, ...]
    sources: frozenset[tuple[str, int]]
    constants: tuple[AnyArray, ...]
    selected: frozenset[int] = frozenset()

    @property
    def ops(self) -> frozenset[str]:
        return frozenset(node.op for node in self.nodes)

    @property
    def raw(self) -> bool:
        """Whether the column comes from a layer unchanged."""
        return bool(self.sources) and self.ops <= MOVES

    @property
    def layers(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.sources)


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor, an axis of it and a position along that axis; axis -1 where the axis is unknown."""

    tensor: str
    axis: int
    index: int


def column(graph: GraphView, tensor: str, axis: int, index: int) -> Column:
    """Trace position ``index`` along ``axis`` of ``tensor`` back to the layers it comes from."""
    nodes: dict[str, NodeView] = {}
    sources: set[tuple[str, int]] = set()
    constants: list[AnyArray] = []
    selected: set[int] = set()
    seen: set[_Place] = set()
    waiting = [_Place(tensor, axis, index)]
    while waiting:
        place = waiting.pop(0)
        if place in seen:
            continue
        seen.add(place)
        node = graph.producer(place.tensor)
        if node is None:
            if graph.is_constant(place.tensor):
                constants.append(_constant_part(graph.constants[place.tensor], place))
        elif is_layer(graph, node):
            sources.add((node.name, place.index if _is_channel(graph, node, place) else -1))
        else:
            nodes[node.name] = node
            if node.op == "NonMaxSuppression" and place.axis == 1:
                selected.add(place.index)
            waiting.extend(_back(graph, node, place))
    return Column(tuple(nodes.values()), frozenset(sources), tuple(constants), frozenset(selected))


def _sizes(graph: GraphView, tensor: str) -> tuple[int, ...] | None:
    """Return the shape like ``graph.shape``, but also with unknown sizes (-1)."""
    known = graph.shape(tensor)
    view = graph.tensors.get(tensor)
    return view.shape if known is None and view is not None else known


def _constant_part(array: AnyArray, place: _Place) -> AnyArray:
    if not 0 <= place.axis < array.ndim:
        return array
    part: AnyArray = np.take(array, min(place.index, array.shape[place.axis] - 1), axis=place.axis)
    return part


def _is_channel(graph: GraphView, node: NodeView, place: _Place) -> bool:
    shape = _sizes(graph, place.tensor)
    if shape is None or place.axis < 0:
        return False
    return place.axis == (1 if "Conv" in node.op else len(shape) - 1)


def _back(graph: GraphView, node: NodeView, place: _Place) -> list[_Place]:
    """Return the places of the node's inputs from which a place of its output is computed."""
    step = _STEPS.get(node.op)
    if place.axis >= 0 and step is not None:
        places = step(graph, node, place)
        if places is not None:
            return places
    if place.axis >= 0 and is_projection(graph, node):
        return [_Place(node.inputs[0], place.axis, place.index)]
    return list(_elementwise(graph, node, place))


def _elementwise(graph: GraphView, node: NodeView, place: _Place) -> Iterator[_Place]:
    """Yield, for broadcasting and unknown operators, the same position counted from the last axis."""
    rank = len(_sizes(graph, place.tensor) or ())
    picks = node.op.startswith("Gather") or node.op == "TopK"  # a selection does not change the values
    for name in node.inputs[:1] if picks else node.inputs:
        if not name or (graph.is_constant(name) and node.op not in ("Where", "ScatterND")):
            continue
        shape = _sizes(graph, name)
        axis = place.axis - rank + len(shape) if shape is not None and place.axis >= 0 else -1
        if shape is None or not 0 <= axis < len(shape):
            yield _Place(name, -1, 0)
        else:
            yield _Place(name, axis, place.index if shape[axis] != 1 else 0)


def _concat(graph: GraphView, node: NodeView, place: _Place) -> list[_Place] | None:
    rank = len(_sizes(graph, place.tensor) or ())
    if int(node.attributes["axis"]) % max(rank, 1) != place.axis:
        return [_Place(name, place.axis, place.index) for name in node.inputs]
    index = place.index
    for name in node.inputs:
        shape = _sizes(graph, name)
        if shape is None:
            return None
        if index < shape[place.axis] or shape[place.axis] < 0:
            return [_Place(name, place.axis, index)]
        index -= shape[place.axis]
    return None


def _reshape(graph: GraphView, node: NodeView, place: _Place) -> list[_Place] | None:
    """Find the old axis with the same number of elements per step: a reshape keeps row-major order."""
    new, old = _sizes(graph, place.tensor), _sizes(graph, node.inputs[0])
    if new is None or old is None:
        return None
    if -1 in (*new, *old):
        last = place.axis == len(new) - 1 and new[-1] == old[-1]
        return [_Place(node.inputs[0], len(old) - 1, place.index)] if last else None
    step = int(np.prod(new[place.axis + 1 :]))
    inner = 1
    for axis in range(len(old) - 1, -1, -1):
        if old[axis] > 1 and inner <= step < inner * old[axis]:
            return [_Place(node.inputs[0], axis, place.index * step // inner % old[axis])]
        inner *= old[axis]
    return None


def _transpose(graph: GraphView, node: NodeView, place: _Place) -> list[_Place] | None:
    rank = len(_sizes(graph, place.tensor) or ())
    perm = node.attributes.get("perm", list(range(rank))[::-1])
    return [_Place(node.inputs[0], int(perm[place.axis]), place.index)]


def _slice(graph: GraphView, node: NodeView, place: _Place) -> list[_Place] | None:
    shape = _sizes(graph, node.inputs[0])
    values = [graph.constants.get(name) for name in node.inputs[1:]]
    if shape is None or len(values) < 2 or values[0] is None:
        return None
    starts = values[0].reshape(-1)
    axes = values[2].reshape(-1) if len(values) > 2 and values[2] is not None else np.arange(len(starts))
    steps = values[3].reshape(-1) if len(values) > 3 and values[3] is not None else np.ones(len(starts), int)
    index = place.index
    for start, axis, step in zip(starts, axes, steps, strict=True):
        if int(axis) % len(shape) == place.axis:
            size = shape[place.axis]
            first = int(np.clip(start + size if start < 0 else start, 0, size - 1 if step < 0 else size))
            index = first + index * int(step)
    return [_Place(node.inputs[0], place.axis, index)]


def _split(graph: GraphView, node: NodeView, place: _Place) -> list[_Place] | None:
    rank = len(_sizes(graph, node.inputs[0]) or ())
    if int(node.attributes.get("axis", 0)) % max(rank, 1) != place.axis:
        return [_Place(node.inputs[0], place.axis, place.index)]
    shapes = [_sizes(graph, name) for name in node.outputs]
    before = shapes[: node.outputs.index(place.tensor)]
    if any(shape is None for shape in before):
        return None
    offset = sum(shape[place.axis] for shape in before if shape is not None)
    return [_Place(node.inputs[0], place.axis, place.index + offset)]


def _gather(graph: GraphView, node: NodeView, place: _Place) -> list[_Place] | None:
    shape, picked = _sizes(graph, node.inputs[0]), _sizes(graph, node.inputs[1])
    if shape is None or picked is None:
        return None
    axis = int(node.attributes.get("axis", 0)) % len(shape)
    if place.axis < axis:
        return [_Place(node.inputs[0], place.axis, place.index)]
    if place.axis >= axis + len(picked):
        return [_Place(node.inputs[0], place.axis - len(picked) + 1, place.index)]
    indices = graph.constants.get(node.inputs[1])
    if indices is None or indices.ndim != 1:
        return None
    return [_Place(node.inputs[0], axis, int(indices[place.index]) % shape[axis])]


def _axes(graph: GraphView, node: NodeView, rank: int) -> list[int] | None:
    value = graph.constants.get(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else None
    axes = value.reshape(-1).tolist() if value is not None else node.attributes.get("axes")
    return None if axes is None else sorted(int(axis) % rank for axis in axes)


def _unsqueeze(graph: GraphView, node: NodeView, place: _Place) -> list[_Place] | None:
    axes = _axes(graph, node, len(_sizes(graph, place.tensor) or (1,)))
    if axes is None or place.axis in axes:
        return None
    return [_Place(node.inputs[0], place.axis - sum(axis < place.axis for axis in axes), place.index)]


def _squeeze(graph: GraphView, node: NodeView, place: _Place) -> list[_Place] | None:
    shape = _sizes(graph, node.inputs[0])
    if shape is None:
        return None
    axes = _axes(graph, node, len(shape))
    gone = axes if axes is not None else [axis for axis, size in enumerate(shape) if size == 1]
    left = [axis for axis in range(len(shape)) if axis not in gone]
    return [_Place(node.inputs[0], left[place.axis], place.index)]


def _reduce(graph: GraphView, node: NodeView, place: _Place) -> list[_Place] | None:
    if node.attributes.get("keepdims", 1):
        return [_Place(node.inputs[0], place.axis, place.index)]
    return _squeeze(graph, node, place)


def _scatter(graph: GraphView, node: NodeView, place: _Place) -> list[_Place] | None:
    """Return data and update of an in-place assignment, as exporters write it; one of them where that is certain."""
    update, indices = _sizes(graph, node.inputs[2]), graph.constants.get(node.inputs[1])
    data = _Place(node.inputs[0], place.axis, place.index)
    if indices is not None and place.axis < indices.shape[-1]:
        return _assigned(graph, node, place, indices)
    if update is None or place.axis >= len(update):
        return [data, _Place(node.inputs[2], -1, 0)]
    return [data, _Place(node.inputs[2], place.axis, min(place.index, update[place.axis] - 1))]


def _assigned(graph: GraphView, node: NodeView, place: _Place, indices: AnyArray) -> list[_Place]:
    """Return the places of a position that an assignment to a grid of indices writes, or leaves.

    Args:
        graph: the network.
        node: ScatterND.
        place: in its output, along an axis that the indices cover.
        indices: (..., depth): one position per update.
    """
    data, sizes = _Place(node.inputs[0], place.axis, place.index), _sizes(graph, node.inputs[0]) or ()
    along = indices[..., place.axis]
    for axis in sorted(range(along.ndim), key=lambda axis: axis != place.axis):
        line = along[tuple(slice(None) if other == axis else 0 for other in range(along.ndim))]
        shape = [-1 if other == axis else 1 for other in range(along.ndim)]
        if len(set(line.tolist())) < len(line) or np.any(along != line.reshape(shape)):
            continue
        written = np.flatnonzero(line == place.index)
        if len(written) == 0:
            return [data]
        update = _Place(node.inputs[2], axis, int(written[0]))
        cells = np.prod(
            [size for other, size in enumerate(sizes[: indices.shape[-1]]) if other != place.axis]
        )
        return [update] if along.size // len(line) == cells else [data, update]
    return [data, _Place(node.inputs[2], -1, 0)]


_STEPS = {
    "Concat": _concat,
    "Flatten": _reshape,
    "Gather": _gather,
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "Reshape": _reshape,
    "ScatterND": _scatter,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
