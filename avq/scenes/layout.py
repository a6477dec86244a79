"""The cross-section of one drive's road: lanes, parking strips, pavements; metres from the ego lane's middle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LANE_M = 3.5


@dataclass(frozen=True)
class RoadLayout:
    """x positions, metres, right positive. Pavements lie between ``*_edge_m`` and ``*_wall_m``."""

    same_lanes_m: tuple[float, ...]
    oncoming_lanes_m: tuple[float, ...]
    left_edge_m: float
    right_edge_m: float
    parking: bool

    @property
    def left_wall_m(self) -> float:
        return self.left_edge_m - 3.2

    @property
    def right_wall_m(self) -> float:
        return self.right_edge_m + 3.2


def layout_for(rng: np.random.Generator) -> RoadLayout:
    """Two to four lanes, with or without parked cars at the kerb."""
    right_lanes = 1 + int(rng.random() < 0.3)
    left_lanes = 1 + int(rng.random() < 0.35)
    parking = bool(rng.random() < 0.55)
    strip = 3.6 if parking else 1.7
    same = tuple(LANE_M * i for i in range(right_lanes))
    oncoming = tuple(-LANE_M * (i + 1) for i in range(left_lanes))
    right = same[-1] + LANE_M / 2 + strip
    left = oncoming[-1] - LANE_M / 2 - (2.3 if parking else 0.4)
    return RoadLayout(same, oncoming, left, right, parking)
