"""What may be changed of an imported quantization when the user asks for it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from avq.types import Edge, GraphView, QuantPoint

_SMALLEST_NORMAL = np.finfo(np.float32).tiny


def resymmetrized(points: Sequence[QuantPoint]) -> list[QuantPoint]:
    """Every grid signed around zero, its range covering the old one.

    An unsigned grid with its zero in the middle is that already: only its integers are renamed.
    """
    return [_around_zero(point) for point in points]


def _around_zero(point: QuantPoint) -> QuantPoint:
    if point.symmetric:
        return point
    zero = np.zeros_like(point.zero_point)
    if not point.signed and not point.narrow and np.all(point.zero_point == 1 << (point.bits - 1)):
        return replace(point, signed=True, zero_point=zero)
    reach = np.maximum(point.zero_point - point.qmin, point.qmax - point.zero_point)
    scale = point.scale.astype(np.float64) * reach / ((1 << (point.bits - 1)) - 1)
    return replace(point, signed=True, zero_point=zero, scale=scale.astype(np.float32))


def per_tensor(graph: GraphView, points: Sequence[QuantPoint]) -> list[QuantPoint]:
    """Activations with one scale per channel get one that covers them all."""
    return [p if graph.is_constant(p.edge.tensor) or not p.scale.ndim else _merged(p) for p in points]


def _merged(point: QuantPoint) -> QuantPoint:
    low = float(np.min((point.qmin - point.zero_point) * point.scale.astype(np.float64)))
    high = float(np.max((point.qmax - point.zero_point) * point.scale.astype(np.float64)))
    scale = (high - low) / (point.qmax - point.qmin)
    zero_point = 0 if point.symmetric else round(point.qmin - low / scale)
    if point.symmetric:
        scale = float(np.max(point.scale))
    return replace(
        point, axis=None, scale=np.asarray(scale, np.float32), zero_point=np.asarray(zero_point, np.int64)
    )


def with_raised_scales(points: Sequence[QuantPoint]) -> list[QuantPoint]:
    """No scale below the smallest normal float32."""
    return [
        replace(p, scale=np.asarray(np.maximum(p.scale, _SMALLEST_NORMAL), np.float32))
        if np.any(p.scale < _SMALLEST_NORMAL)
        else p
        for p in points
    ]


def left_float(graph: GraphView, points: Sequence[QuantPoint], nodes: Collection[str]) -> list[QuantPoint]:
    """Without what ``nodes`` read and write; other readers of the same tensors keep their grids."""
    written = {output for name in nodes for output in graph.node(name).outputs}
    kept: list[QuantPoint] = []
    for point in points:
        edge = point.edge
        readers = graph.consumers(edge.tensor)
        if edge.tensor in written or edge.node in nodes:
            continue
        if not edge.node and any(node.name in nodes for node, _ in readers):
            others = [(node, index) for node, index in readers if node.name not in nodes]
            kept += [replace(point, edge=Edge(edge.tensor, n.name, i)) for n, i in others]
        else:
            kept.append(point)
    return kept
