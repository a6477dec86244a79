"""Cost model fitted to measured times: layer counters first, whole networks to correct them.

The time of a layer depends on its neighbours (which of them quantizes, which adds, which layout), so a group is
counted in many precision maps and its INT8 gain is the difference of medians. Whole networks, timed end to end, then
calibrate those gains, the multiply-adds and the boundaries: a bounded ridge regression
(A. Hoerl, R. Kennard, "Ridge Regression", Technometrics 12, 1970) with Huber's weights (P. Huber, "Robust Estimation
of a Location Parameter", 1964), then Tukey's (A. Beaton, J. Tukey, Technometrics 16, 1974), because a session with an
unfavourable memory layout is a few percent slower for its whole life.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from avq.toolbox import one_blas_thread
from avq.types import F64, AnyArray
from avq_mixed.groups import Boundary, Group


@dataclass(frozen=True)
class CostModel:
    """Prediction of the time of a precision map, as a ratio to the fastest float engine.

    Attributes:
        base: ratio with every group float.
        group: (groups,) change when one group runs in INT8; negative where that is faster.
        up: (boundaries,) cost of entering INT8; never negative.
        down: (boundaries,) cost of leaving INT8; never negative.
        boundaries: tensors between groups.
    """

    base: float
    group: F64
    up: F64
    down: F64
    boundaries: tuple[Boundary, ...]

    def predict(self, int8: AnyArray) -> float:
        """Return the predicted ratio of a map, (groups,) bool."""
        up, down = crossings(self.boundaries, int8)
        return float(self.base + self.group @ int8 + self.up @ up + self.down @ down)


def crossings(boundaries: Sequence[Boundary], int8: AnyArray) -> tuple[F64, F64]:
    """Return two (boundaries,) arrays: 1.0 where a tensor enters INT8, and 1.0 where one leaves it."""
    inside = np.append(np.asarray(int8, bool), False)  # the last one is OUTSIDE
    writer = inside[[b.writer for b in boundaries]] if boundaries else np.zeros(0, bool)
    reader = inside[[b.reader for b in boundaries]] if boundaries else np.zeros(0, bool)
    return (reader & ~writer).astype(np.float64), (writer & ~reader).astype(np.float64)


# Ratios to the float time: noise of one timing, and prior and deviation of each coefficient.
_NOISE = 0.01
_BASE_DEVIATION, _SESSION_DEVIATION = 0.1, 0.01
_COUNTED_PRIOR, _COUNTED_DEVIATION = 0.8, 0.4
_MACS_DEVIATION, _UNCOUNTED_MACS_PRIOR, _UNCOUNTED_MACS_DEVIATION = 1.0, -0.5, 2.0
_GROUP_FLOOR, _GROUP_DEVIATION = 0.001, 0.1
_BOUNDARY_PRIOR, _BOUNDARY_DEVIATION, _EDGE_DEVIATION = 0.00015, 0.0005, 0.0005
# Huber's limit for the first fits, Tukey's then ignores outliers; both in standard deviations.
_HUBER, _TUKEY, _REWEIGHTINGS = 2.0, 4.685, 3


@dataclass(frozen=True)
class Counted:
    """Nanoseconds of each group in context, (groups,): the median over the counted maps of one precision."""

    float_ns: F64
    int8_ns: F64

    @property
    def gain(self) -> F64:
        """Time that INT8 adds per group, over the whole float time."""
        return (self.int8_ns - self.float_ns) / max(float(self.float_ns.sum()), 1.0)


def count(
    groups: Sequence[Group], maps: Sequence[AnyArray], times_ns: Sequence[Mapping[str, int]] | None
) -> Counted | None:
    """Sum per-node times of several maps per group, and take medians.

    Args:
        groups: fusion groups.
        maps: (groups,) bool each; every group must be float in one of them and INT8 in another.
        times_ns: per map, node name -> nanoseconds; None when the engine has no layer times.

    Returns:
        Medians per group and precision; None without layer times.
    """
    if not times_ns:
        return None
    spent = np.array([[sum(t.get(n, 0) for n in g.nodes) for g in groups] for t in times_ns], np.float64)
    inside = np.array(maps, bool)
    medians = [[np.median(spent[inside[:, i] == on, i]) for i in range(len(groups))] for on in (False, True)]
    return Counted(np.array(medians[0]), np.array(medians[1]))


@dataclass(frozen=True)
class Timing:
    """Measured time of a map over float; timings of one ``call`` share one float session."""

    int8: AnyArray
    ratio: float
    call: int


def fit(
    groups: Sequence[Group],
    boundaries: Sequence[Boundary],
    counted: Counted | None,
    timings: Sequence[Timing],
) -> CostModel:
    """Fit the cost model to ``timings`` and its priors; the cost of a boundary is never negative."""
    layout = _Layout.of(groups, boundaries, counted)
    rows = np.array([layout.row(t.int8) for t in timings])
    calls = sorted({t.call for t in timings})
    # The deviation of the float session is common to all timings of a call.
    shifts = np.array([[t.call == c for c in calls] for t in timings], np.float64)
    coefficients = _robust(
        np.hstack([rows, shifts]),
        np.array([t.ratio for t in timings]),
        np.append(layout.prior, np.zeros(shifts.shape[1])),
        np.append(layout.deviation, np.full(shifts.shape[1], _SESSION_DEVIATION)),
        np.append(layout.low, np.full(shifts.shape[1], -np.inf)),
    )
    return layout.model(coefficients[: layout.prior.size])


def _robust(rows: F64, ratios: F64, prior: F64, deviation: F64, low: F64) -> F64:
    """Solve the bounded ridge regression repeatedly, with less weight on outliers each time."""
    from scipy.optimize import lsq_linear

    stiff = np.diag(_NOISE / deviation)
    weights = np.ones(len(ratios))
    for turn in range(2 * _REWEIGHTINGS):
        with one_blas_thread():
            solution = lsq_linear(
                np.vstack([rows * weights[:, None], stiff]),
                np.concatenate([ratios * weights, stiff @ prior]),
                bounds=(low, np.full(prior.size, np.inf)),
            ).x
        far = np.abs(ratios - rows @ solution)
        deviations = far / max(1.4826 * float(np.median(far)), _NOISE / 2.0)
        if turn < _REWEIGHTINGS:
            weights = np.sqrt(np.minimum(1.0, _HUBER / np.maximum(deviations, 1e-12)))
        else:
            weights = np.clip(1.0 - (deviations / _TUKEY) ** 2, 0.0, 1.0)
    result: F64 = solution
    return result


@dataclass(frozen=True)
class _Layout:
    """Columns of the regression.

    Columns: base; four prices common to all boundaries (up and down, each per boundary and per value); per kind of
    group a factor on its multiply-adds, and one on its counted gain; a residual per group; a residual price per
    boundary up, and down.

    Attributes:
        boundaries: tensors between groups.
        shares: (groups, factors) values that the factors multiply.
        unit: (boundaries,) values that cross, over their mean.
        prior: (columns,) prior of each coefficient.
        deviation: (columns,) deviation of the prior.
        low: (columns,) lower bound.
    """

    boundaries: tuple[Boundary, ...]
    shares: F64
    unit: F64
    prior: F64
    deviation: F64
    low: F64

    @classmethod
    def of(cls, groups: Sequence[Group], boundaries: Sequence[Boundary], counted: Counted | None) -> _Layout:
        macs = np.array([g.macs for g in groups], np.float64)
        macs /= max(float(macs.sum()), 1.0)
        elements = np.array([b.elements for b in boundaries], np.float64)
        unit = elements / max(float(elements.mean()) if elements.size else 0.0, 1.0)
        kinds = sorted({g.kind for g in groups})
        of_kind = np.array([[g.kind == kind for kind in kinds] for g in groups], np.float64)
        many = len(kinds)
        if counted is None:
            shares, prior, deviation = (
                macs[:, None] * of_kind,
                [_UNCOUNTED_MACS_PRIOR],
                [_UNCOUNTED_MACS_DEVIATION],
            )
            own = macs
        else:
            shares = np.hstack([macs[:, None] * of_kind, counted.gain[:, None] * of_kind])
            prior, deviation = [0.0, _COUNTED_PRIOR], [_MACS_DEVIATION, _COUNTED_DEVIATION]
            own = counted.float_ns / max(float(counted.float_ns.sum()), 1.0)
        edges = _EDGE_DEVIATION * (1.0 + np.tile(unit, 2))
        factors = shares.shape[1]
        return cls(
            boundaries=tuple(boundaries),
            shares=shares,
            unit=unit,
            prior=np.concatenate(
                [[1.0], [_BOUNDARY_PRIOR] * 4, np.repeat(prior, many), np.zeros(len(groups) + edges.size)]
            ),
            deviation=np.concatenate(
                [
                    [_BASE_DEVIATION],
                    [_BOUNDARY_DEVIATION] * 4,
                    np.repeat(deviation, many),
                    _GROUP_FLOOR + _GROUP_DEVIATION * own,
                    edges,
                ]
            ),
            low=np.concatenate(
                [[0.0], np.zeros(4), np.full(factors + len(groups), -np.inf), np.zeros(edges.size)]
            ),
        )

    def row(self, int8: AnyArray) -> F64:
        up, down = crossings(self.boundaries, int8)
        inside = np.asarray(int8, np.float64)
        shared = [1.0, up.sum(), up @ self.unit, down.sum(), down @ self.unit]
        return np.concatenate([shared, inside @ self.shares, inside, up, down])

    def model(self, coefficients: F64) -> CostModel:
        base, up, up_value, down, down_value = coefficients[:5]
        factors, rest = np.split(coefficients[5:], [self.shares.shape[1]])
        own, own_up, own_down = np.split(rest, [len(self.shares), len(self.shares) + self.unit.size])
        return CostModel(
            base=float(base),
            group=self.shares @ factors + own,
            up=up + up_value * self.unit + own_up,
            down=down + down_value * self.unit + own_down,
            boundaries=self.boundaries,
        )
