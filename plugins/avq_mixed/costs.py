"""What a precision map costs in time: every group's own price in INT8, plus every precision boundary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from avq.types import F64, AnyArray
from avq_mixed.groups import OUTSIDE, Boundary


@dataclass(frozen=True)
class CostModel:
    """Predicts the time of a precision map as a ratio to the fastest float engine.

    Attributes:
        base: everything float.
        group: (groups,) what a group adds when it turns to INT8; negative where that is faster.
        up, down: (boundaries,) cost of entering INT8 and of leaving it; never negative.
    """

    base: float
    group: F64
    up: F64
    down: F64
    boundaries: tuple[Boundary, ...]

    def predict(self, int8: AnyArray) -> float:
        """Ratio of the map; ``int8`` is (groups,) bool."""
        up, down = crossings(self.boundaries, int8)
        return float(self.base + self.group @ int8 + self.up @ up + self.down @ down)


def crossings(boundaries: Sequence[Boundary], int8: AnyArray) -> tuple[F64, F64]:
    """(boundaries,) 1.0 where a float tensor enters INT8, and where an INT8 one leaves it."""
    inside = np.append(np.asarray(int8, bool), False)  # the last one is OUTSIDE
    writer = inside[[b.writer for b in boundaries]] if boundaries else np.zeros(0, bool)
    reader = inside[[b.reader for b in boundaries]] if boundaries else np.zeros(0, bool)
    return (reader & ~writer).astype(np.float64), (writer & ~reader).astype(np.float64)


__all__ = ["OUTSIDE", "CostModel", "crossings"]
