"""What a precision map costs in time: measured group times, plus every precision boundary.

The times of single groups come from the engine's own counters where it has them (else multiply-adds stand in),
and whole networks with random maps, timed end to end, say what those and the boundaries are really worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from avq.types import F64, AnyArray
from avq_mixed.groups import OUTSIDE, Boundary, Group

# Of one whole-network time, as a ratio to float; and how far from its prior a fitted number may well be.
_NOISE = 0.006
_FACTOR_DEVIATION, _UNTOLD_DEVIATION = 0.4, 2.0
_BOUNDARY_PRIOR, _BOUNDARY_DEVIATION = 0.0003, 0.0005


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


def counted_gains(
    groups: Sequence[Group],
    in_float: Mapping[str, int] | None,
    in_int8: Mapping[str, int] | None,
    float_ns: float,
) -> tuple[F64, bool]:
    """(groups,) what INT8 adds to each group's time over the whole float time; and whether engines told.

    Without counters, the share of the multiply-adds, as if INT8 took half the time.
    """
    macs = np.array([g.macs for g in groups], np.float64)
    if not in_float or not in_int8:
        return -0.5 * macs / max(float(macs.sum()), 1.0), False
    gains = [sum(in_int8.get(n, 0) - in_float.get(n, 0) for n in g.nodes) for g in groups]
    return np.array(gains, np.float64) / max(float_ns, 1.0), True


def random_maps(groups: Sequence[Group], count: int, seed: int) -> list[AnyArray]:
    """(groups,) bool maps from nearly float to nearly INT8: runs of neighbours, as real plans have.

    Every other one leaves depthwise convolutions float: few good maps have them in INT8.
    """
    rng = np.random.default_rng(seed)
    mixing = np.array([g.kind != "depthwise" for g in groups], bool)
    maps = []
    for index in range(count):
        share = (index + 0.5) / count
        run = int(rng.integers(1, max(2, len(groups) // 6) + 1))
        blocks = rng.random(-(-len(groups) // run)) < share
        drawn = np.repeat(blocks, run)[: len(groups)]
        maps.append(drawn & mixing if index % 2 else drawn)
    return maps


def fit(
    groups: Sequence[Group],
    boundaries: Sequence[Boundary],
    gains: F64,
    told: bool,
    maps: Sequence[AnyArray],
    ratios: Sequence[float],
) -> CostModel:
    """The cost model nearest to whole-network times ``ratios`` of ``maps``.

    A bounded least-squares fit of few numbers: one factor per kind of group, and one price per boundary and
    per value that crosses it, up and down. Boundaries never pay.
    """
    from scipy.optimize import lsq_linear

    kinds = sorted({g.kind for g in groups})
    of_kind = np.array([[g.kind == kind for kind in kinds] for g in groups], np.float64)
    elements = np.array([b.elements for b in boundaries], np.float64)
    unit = elements / max(float(elements.mean()) if elements.size else 0.0, 1.0)
    rows = [_features(boundaries, unit, gains, of_kind, int8) for int8 in maps]
    factor = _FACTOR_DEVIATION if told else _UNTOLD_DEVIATION
    prior = np.array([1.0, *[1.0] * len(kinds), *[_BOUNDARY_PRIOR / 2] * 4])
    deviation = np.array([0.1, *[factor] * len(kinds), *[_BOUNDARY_DEVIATION] * 4])
    stiff = np.diag(_NOISE / deviation)
    low = np.array([0.0, *[0.0 if told else -np.inf] * len(kinds), 0.0, 0.0, 0.0, 0.0])
    found = lsq_linear(
        np.vstack([np.array(rows), stiff]),
        np.concatenate([np.asarray(ratios, np.float64), stiff @ prior]),
        bounds=(low, np.full(prior.size, np.inf)),
    ).x
    per_kind, (up, up_value, down, down_value) = found[1 : 1 + len(kinds)], found[-4:]
    return CostModel(
        base=float(found[0]),
        group=gains * (of_kind @ per_kind),
        up=up + up_value * unit,
        down=down + down_value * unit,
        boundaries=tuple(boundaries),
    )


def _features(
    boundaries: Sequence[Boundary], unit: F64, gains: F64, of_kind: F64, int8: AnyArray
) -> list[float]:
    up, down = crossings(boundaries, int8)
    by_kind = (gains * int8) @ of_kind
    return [1.0, *by_kind.tolist(), up.sum(), up @ unit, down.sum(), down @ unit]


__all__ = ["OUTSIDE", "CostModel", "counted_gains", "crossings", "fit", "random_maps"]
