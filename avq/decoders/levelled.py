"""Raw heads that give one output per feature map, or one for all: pairs of class scores and box numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from avq.decoders.columns import Column, column
from avq.decoders.structure import Level, levels
from avq.types import F32, GraphView


@dataclass(frozen=True)
class MapOutput:
    """One output of one feature map.

    Attributes:
        name: of the output.
        axis: its column axis; the others count cells.
        features: columns.
        rows: cells (times anchors, where anchors are rows already).
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
        """As JSON: enough to read it without the graph."""
        return {"output": self.name, "axis": self.axis, "size": [self.level.height, self.level.width]}


def map_outputs(graph: GraphView) -> list[MapOutput] | None:
    """Every output as an output of one feature map; None when one is not."""
    found = [_map_output(graph, name) for name in graph.output_names]
    whole = [one for one in found if one is not None]
    return whole if len(whole) == len(found) else None


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
    """Outputs grouped by feature map, finest first, file order within."""
    groups: dict[Level, list[MapOutput]] = {}
    for one in outputs:
        groups.setdefault(one.level, []).append(one)
    return [groups[level] for level in sorted(groups, key=lambda level: level.stride_px)]


def rows_of(values: F32, params: Mapping[str, Any]) -> F32:
    """An output as (rows, features); a view where the layout allows."""
    axis = params["axis"]
    moved = values if axis == values.ndim - 1 else np.moveaxis(values, axis, -1)
    return moved.reshape(-1, values.shape[axis])
