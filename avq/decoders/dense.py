"""Find the rows of a dense head: the axis of cells, the meaning of columns, one output or one per feature map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from avq.decoders.columns import Column, column
from avq.decoders.structure import Level, levels, total_cells
from avq.types import F32, AnyArray, GraphView

Format = str  # "xyxy", "cxcywh", or "xywh" with the corner x0, y0

_PIXELS = 4.0  # larger factors are strides or sizes in pixels; those of anchors in 0..1 are smaller
_UNIT = 1.5  # largest centre in 0..1, with a margin for anchors outside
_SMALLEST_PICTURE_PX = 16.0
_FEW = 8  # constants with more values are per anchor


@dataclass(frozen=True)
class DenseOutput:
    """An output with one row per anchor.

    Attributes:
        graph: the network.
        name: name of the output.
        feature_axis: axis of the columns in its 3-D shape; the other one counts rows.
        features: number of columns.
        rows: number of rows.
        anchors: rows per cell.
        levels: feature maps of the rows.
    """

    graph: GraphView
    name: str
    feature_axis: int
    features: int
    rows: int
    anchors: int
    levels: tuple[Level, ...]

    def column(self, index: int) -> Column:
        return column(self.graph, self.name, self.feature_axis, index)

    @property
    def planes(self) -> bool:
        """Whether the layout is (1, F, N), where columns are contiguous planes."""
        return self.feature_axis == 1

    @cached_property
    def box(self) -> tuple[Column, ...]:
        return tuple(self.column(index) for index in range(4))


def dense_output(
    graph: GraphView, name: str, maps: tuple[Level, ...] | None = None, *, any_rows: bool = False
) -> DenseOutput | None:
    """Return the output as rows of anchors; None when its shape does not match the head's feature maps.

    Args:
        graph: the network.
        name: name of the output.
        maps: feature maps; None finds them.
        any_rows: use the longer axis as rows where maps have different numbers of anchors (SSD).
    """
    shape = graph.shape(name)
    maps = levels(graph) if maps is None else maps
    cells = total_cells(maps)
    if shape is None or len(shape) != 3 or shape[0] != 1 or not cells:
        return None
    fitting = [axis for axis in (1, 2) if shape[axis] % cells == 0 and shape[axis] // cells <= 32]
    if any_rows and not fitting and max(shape) > 100:
        fitting = [1, 2]
    if not fitting:
        return None
    rows = max(fitting, key=lambda axis: shape[axis])
    return DenseOutput(graph, name, 3 - rows, shape[3 - rows], shape[rows], shape[rows] // cells, maps)


def column_runs(rows: DenseOutput | MapOutput, first: int = 0) -> list[int]:
    """Return the lengths of the runs of columns that one kind of computation makes, from column ``first`` on.

    Columns are of one kind where the same layers and the same operators make them: boxes, class scores, landmarks.
    """
    runs: list[int] = []
    previous: tuple[frozenset[str], frozenset[str]] | None = None
    for index in range(first, rows.features):
        one = rows.column(index)
        kind = (one.ops, one.layers)
        if kind == previous:
            runs[-1] += 1
        else:
            runs.append(1)
        previous = kind
    return runs


def of_one_kind(rows: DenseOutput | MapOutput, first: int = 0) -> bool:
    """Return whether all columns from ``first`` on are of one kind; others are landmarks, angles or masks."""
    return len(column_runs(rows, first)) == 1


def one_dense(graph: GraphView) -> DenseOutput | None:
    """Return the dense output of a graph with exactly one output; None for other graphs."""
    return dense_output(graph, graph.output_names[0]) if len(graph.outputs) == 1 else None


def box_format(graph: GraphView, box: Sequence[Column]) -> Format:
    """Return the format of four columns, from the computation of the first (x0 or cx) and the third (x1 or w).

    Both from the same values: a difference and a sum are two corners, a sum and a difference are centre and size. One
    from a part of the other's values: a corner and the size. Otherwise an exponential or sigmoid in the third column
    only means a size.
    """
    first, third = box[0], box[2]
    combined = _combination(graph, first), _combination(graph, third)
    if first.sources == third.sources:
        known = {("Sub", "Add"): "xyxy", ("Add", "Sub"): "cxcywh"}.get(combined)
        return known or ("xyxy" if "Exp" in first.ops else "cxcywh")
    if first.sources and first.sources < third.sources:
        return "xywh" if combined[1] == "Sub" else "xyxy"
    if third.sources and third.sources < first.sources:
        return "xywh" if combined[0] == "Sub" else "cxcywh"
    if "Exp" in first.ops:
        return "xyxy"
    return "cxcywh" if third.ops & {"Exp", "Sigmoid"} else "xyxy"


def _combination(graph: GraphView, one: Column) -> str:
    """Return "Add" or "Sub" where the last step but scaling joins two computed values, else ""."""
    for node in one.nodes:
        if node.op in ("Add", "Sub") and not any(graph.is_constant(name) for name in node.inputs):
            return node.op
    return ""


def in_unit_square(graph: GraphView, box: Sequence[Column]) -> bool:
    """Return whether boxes are in 0..1, by the last scaling or the anchor centres, else by a bare sigmoid."""
    for node in box[0].nodes:
        for name in node.inputs:
            value = graph.constants.get(name)
            if value is not None and value.size and value.dtype.kind == "f":
                in_unit = _unit_range(node.op, value)
                if in_unit is not None:
                    return in_unit
    return "Sigmoid" in box[0].ops


def _unit_range(op: str, value: AnyArray) -> bool | None:
    largest = float(np.abs(value).max())
    if op in ("Mul", "Div") and (largest > _PIXELS or largest < 1 / _PIXELS):
        return (op == "Div") == (largest > _PIXELS)
    if op in ("Add", "Sub") and value.size > _FEW:
        return True if largest <= _UNIT else False if largest > _PIXELS else None
    if op in ("Clip", "Min"):  # clips to the picture size; limits of exponents are below the smallest one
        return True if 0 < largest <= _UNIT else False if largest >= _SMALLEST_PICTURE_PX else None
    return None


def level_params(maps: Sequence[Level]) -> list[list[int]]:
    """Return the levels as JSON: [height, width, stride_px]."""
    return [[level.height, level.width, level.stride_px] for level in maps]


def ordered_levels(
    graph: GraphView, name: str, row_axis: int, maps: Sequence[Level], anchors: int = 1
) -> list[Level]:
    """Return the levels in the order of their rows, by tracing the first row of each to its convolution."""
    remaining, ordered, row = list(maps), [], 0
    while remaining:
        origin = column(graph, name, row_axis, row)
        shapes = {graph.shape(graph.node(layer).outputs[0]) for layer in origin.layers}
        sizes = {shape[2:] for shape in shapes if shape is not None and len(shape) == 4}
        match = [level for level in remaining if (level.height, level.width) in sizes]
        if len(match) != 1:
            return list(maps)
        remaining.remove(match[0])
        ordered.append(match[0])
        row += match[0].cells * anchors
    return ordered


@dataclass(frozen=True)
class MapOutput:
    """One output of one feature map.

    Attributes:
        graph: the network.
        name: name of the output.
        axis: axis of the columns; the others count cells.
        features: number of columns.
        rows: number of cells (times anchors, where anchors are rows).
        level: the feature map.
    """

    graph: GraphView
    name: str
    axis: int
    features: int
    rows: int
    level: Level

    def column(self, index: int) -> Column:
        return column(self.graph, self.name, self.axis, index)

    def params(self) -> dict[str, Any]:
        """Return JSON values that describe the layout of the output."""
        return {"output": self.name, "axis": self.axis, "size": [self.level.height, self.level.width]}


def map_outputs(graph: GraphView) -> list[MapOutput] | None:
    """Return every output as that of one feature map; None when an output is not."""
    candidates = [_map_output(graph, name) for name in graph.output_names]
    outputs = [output for output in candidates if output is not None]
    return outputs if len(outputs) == len(candidates) else None


def _map_output(graph: GraphView, name: str) -> MapOutput | None:
    shape, maps = graph.shape(name), levels(graph, (name,))
    if shape is None or len(maps) != 1 or shape[0] != 1:
        return None
    level = maps[0]
    if len(shape) == 4 and shape[2:] == (level.height, level.width):
        return MapOutput(graph, name, 1, shape[1], level.cells, level)
    if len(shape) == 4 and shape[1:3] == (level.height, level.width):
        return MapOutput(graph, name, 3, shape[3], level.cells, level)
    if len(shape) != 3:
        return None
    for axis in (2, 1):
        rows, features = shape[3 - axis], shape[axis]
        if rows % level.cells == 0:
            return MapOutput(graph, name, axis, features, rows, level)
    return None


def by_level(outputs: list[MapOutput]) -> list[list[MapOutput]]:
    """Group outputs by feature map, finest first, in file order within a group."""
    groups: dict[Level, list[MapOutput]] = {}
    for output in outputs:
        groups.setdefault(output.level, []).append(output)
    return [groups[level] for level in sorted(groups, key=lambda level: level.stride_px)]


def rows_of(values: F32, params: Mapping[str, Any]) -> F32:
    """Return an output as (rows, features); a view where the layout allows."""
    axis = params["axis"]
    moved = values if axis == values.ndim - 1 else np.moveaxis(values, axis, -1)
    return moved.reshape(-1, values.shape[axis])
