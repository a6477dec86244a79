"""A TensorRT calibration cache over a float graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from avq.builder.sidefiles.taking import Taking
from avq.builder.sidefiles.trt_cache import CacheEntry, TrtCache
from avq.toolbox import weight_point
from avq.types import Edge, QuantPoint


def cache_points(cache: TrtCache, taking: Taking) -> list[QuantPoint]:
    """Points in front of every weighted operator whose inputs are all named, and on its weights."""
    scales: dict[str, CacheEntry] = {}
    for entry in {entry.tensor: entry for entry in cache.entries}.values():
        tensor = taking.find(entry.tensor, entry.line)
        if tensor is not None and _usable(entry, taking):
            scales[tensor] = entry
    edges = taking.names.integer_edges(scales)
    points = [_cache_point(scales[edge.tensor], edge) for edge in edges]
    read = {edge.tensor for edge in edges}
    for tensor, entry in scales.items():
        if tensor not in read:
            taking.note("AVQ-Q57", entry.tensor, entry.line)
    return points + _weights(scales, taking)


def _usable(entry: CacheEntry, taking: Taking) -> bool:
    scale = np.float32(entry.scale)
    if np.isfinite(scale) and scale >= np.finfo(np.float32).tiny:
        return True
    taking.note("AVQ-Q53", entry.tensor, entry.line, f"scale {scale:.6g}")
    return False


def _cache_point(entry: CacheEntry, edge: Edge) -> QuantPoint:
    return QuantPoint(edge, np.asarray(entry.scale, np.float32), np.asarray(0, np.int64))


def _weights(scales: Mapping[str, CacheEntry], taking: Taking) -> list[QuantPoint]:
    return [
        weight_point(p.weight, taking.graph.constants[p.weight.tensor], p.weight_axis)
        for p in taking.names.placements
        if p.weight is not None and all(edge.tensor in scales for edge in p.activations)
    ]
