"""AIMET encodings over a float graph."""

from __future__ import annotations

import numpy as np

from avq.builder.sidefiles.encoding import AimetFile, Encoding, Untaken
from avq.builder.sidefiles.grids import UnfitError, point, settled
from avq.builder.sidefiles.spread import spread_over
from avq.builder.sidefiles.taking import Taking
from avq.types import AnyArray, QuantPoint

_ACCUMULATOR_BITS = 32
_FAR = 2.0


def aimet_points(file: AimetFile, taking: Taking) -> list[QuantPoint]:
    """A point for every integer grid whose tensor the graph has."""
    points: dict[str, QuantPoint] = {}
    for entry in file.entries:
        tensor = taking.find(entry.name, entry.line)
        if tensor is None:
            continue
        try:
            made = _point(entry, tensor, taking)
        except UnfitError as reason:
            taking.unfit(reason, entry.name, entry.line)
            continue
        if tensor in points:
            taking.note("AVQ-Q51", entry.name, entry.line, "is named as activation and as parameter")
        elif made is not None:
            points[tensor] = made
    return list(points.values())


def _point(entry: Encoding | Untaken, tensor: str, taking: Taking) -> QuantPoint | None:
    if isinstance(entry, Untaken):
        raise UnfitError("AVQ-Q54" if entry.kind == "float" else "AVQ-Q55", entry.what)
    if entry.bits == _ACCUMULATOR_BITS:
        raise UnfitError("AVQ-Q54", "32 bits")
    true = settled(entry)
    if true.offset != entry.offset:
        taking.note("AVQ-Q52", entry.name, entry.line, f"{max(entry.offset)} means {true.offset[0]}")
    spread = spread_over(true, tensor, taking.names)
    made = point(true, taking.names.whole(tensor), *spread)
    if taking.graph.is_constant(tensor) and _reaches_too_far(taking.graph.constants[tensor], made):
        taking.note("AVQ-Q59", entry.name, entry.line)
    return made


def _reaches_too_far(weight: AnyArray, point: QuantPoint) -> bool:
    """Some channel's largest magnitude is more than twice what its grid holds."""
    if point.block_size is not None:
        return False
    others = tuple(i for i in range(weight.ndim) if i != point.axis) if point.scale.ndim else None
    largest = np.abs(weight).max(axis=others, initial=0.0)
    ends = np.maximum(point.qmax - point.zero_point, point.zero_point - point.qmin)
    return bool(np.any(largest > _FAR * ends * point.scale))
