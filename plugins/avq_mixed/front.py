"""Measured points, their Pareto front, and the choice of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from avq.types import AnyArray, MeasuredPlan, QuantizationPlan

# The gate's own limits: a point outside of them is not worth choosing.
LOST_PERCENT = 1.0
MAP_DROP_PERCENT = 2.0
CONFIDENCE_SHIFT = 0.02
SQNR_DB = 20.0
# Loss is measured on a few hundred boxes: aim inside the limit.
_MARGIN = 0.9


@dataclass(frozen=True)
class Point:
    """One measured plan.

    Attributes:
        name: origin of the map, such as "all INT8".
        int8: (groups,) bool, the precision map.
        plan: of that map.
        served: engine, score and latency.
        share: share of the multiply-adds in INT8.
        weight_bytes: bytes of all weights.
        predicted: time over float by the cost model; nan for none.
    """

    name: str
    int8: AnyArray
    plan: QuantizationPlan
    served: MeasuredPlan
    share: float
    weight_bytes: int
    predicted: float

    @property
    def is_float(self) -> bool:
        return not self.plan.points

    @property
    def loss(self) -> float:
        """Loss of accuracy: 0 for the float model, which is the reference; else lost mAP with labels, else badness.

        A gain of mAP counts as 0: on few pictures it is chance.
        """
        if self.is_float:
            return 0.0
        score = self.served.score
        if score.map_drop_percent is not None:
            return max(score.map_drop_percent, 0.0) / 100.0
        return score.badness

    def row(self) -> dict[str, object]:
        fidelity, latency = self.served.score.fidelity, self.served.latency
        drop = self.served.score.map_drop_percent
        return {
            "plan": self.name,
            "engine": self.served.engine,
            "INT8 %": round(100 * self.share, 1),
            "lost boxes %": round(100 * fidelity.lost, 2) if fidelity else "-",
            "confidence shift": round(fidelity.confidence_shift, 4) if fidelity else "-",
            "mAP loss %": "-" if drop is None else round(drop, 2),
            "worst SQNR dB": round(min(self.served.score.sqnr_db.values(), default=float("nan")), 1),
            "p50 ms": round(latency.p50_ms, 3),
            "time / float": f"{latency.ratio:.3f} [{latency.ratio_low:.3f}, {latency.ratio_high:.3f}]",
            "predicted": round(self.predicted, 3),
            "weights kB": round(self.weight_bytes / 1024),
        }


def front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats in time, accuracy and size at once, fastest first.

    Times with overlapping intervals count as equal.
    """
    kept = [p for p in points if not any(_beats(other, p) for other in points)]
    return sorted(kept, key=lambda p: p.served.latency.ratio)


def _beats(a: Point, b: Point) -> bool:
    faster = a.served.latency.ratio_high < b.served.latency.ratio_low
    return faster and a.loss <= b.loss and a.weight_bytes <= b.weight_bytes


def with_share(points: Sequence[Point], least: float) -> list[Point]:
    """Return the points with at least that share of multiply-adds in INT8, else the one with most."""
    return [p for p in points if p.share >= least] or [max(points, key=lambda p: p.share)]


def choose(points: Sequence[Point], *, budget_ms: float | None, max_drop: float | None) -> tuple[Point, str]:
    """Choose the point to serve, with the reason.

    Under a budget: the most accurate within it. Under ``max_drop``: the fastest within it. Without either: the knee.
    A point must be inside the gate's limits, as float always is. Where no point is, the most accurate one goes to the
    gate.

    Args:
        points: measured points, at least one.
        budget_ms: largest p50, milliseconds; None for no budget.
        max_drop: largest loss in percent; None for the gate's own.

    Returns:
        The point and the reason.
    """
    limit = loss_limit(points) if max_drop is None else max_drop
    accurate = [p for p in points if p.is_float or _accurate(p, limit)]
    if not accurate:
        return min(points, key=lambda p: p.loss), "the most accurate: none is inside the gate's limits"
    worth = [p for p in accurate if p.is_float or p.served.latency.ratio < 1.0] or accurate
    if budget_ms is not None:
        inside = [p for p in accurate if p.served.latency.p50_ms <= budget_ms]
        if inside:
            best = min(inside, key=lambda p: (p.loss, p.served.latency.ratio))
            return best, f"the most accurate within {budget_ms:g} ms"
        best = min(accurate, key=lambda p: p.served.latency.ratio)
        return best, f"nothing measured is within {budget_ms:g} ms: the fastest"
    if max_drop is not None:
        unit = "of the mAP" if _labelled(points) else "of the boxes"
        best = min(worth, key=lambda p: p.served.latency.ratio)
        return best, f"the fastest that loses at most {max_drop:g} % {unit}"
    return knee(worth, _tolerated(worth, limit)), "the knee of the front"


def loss_limit(points: Sequence[Point]) -> float:
    """Return the gate's own limit in percent: of mAP with labels, else of boxes."""
    return MAP_DROP_PERCENT if _labelled(points) else LOST_PERCENT


def _labelled(points: Sequence[Point]) -> bool:
    return any(p.served.score.map_drop_percent is not None for p in points)


def _tolerated(points: Sequence[Point], limit_percent: float) -> float:
    """Return the loss that weighs as much as the time range of the front."""
    decoded = any(p.served.score.fidelity is not None for p in points)
    return limit_percent / 100.0 if decoded else float(10.0 ** (-SQNR_DB / 20.0))


def _accurate(point: Point, limit_percent: float) -> bool:
    score = point.served.score
    if score.map_drop_percent is not None:
        return score.map_drop_percent <= _MARGIN * limit_percent
    if score.fidelity is None:
        return min(score.sqnr_db.values(), default=0.0) >= SQNR_DB
    lost = 100.0 * score.fidelity.lost
    return (
        lost <= _MARGIN * limit_percent and abs(score.fidelity.confidence_shift) <= _MARGIN * CONFIDENCE_SHIFT
    )


def knee(points: Sequence[Point], tolerated: float) -> Point:
    """Return the point nearest to no loss and least time; loss in units of ``tolerated``, time of its range."""
    best = [p for p in points if not any(_dominates(other, p) for other in points)]
    ratios = [p.served.latency.ratio for p in best]
    least, spread = min(ratios), max(max(ratios) - min(ratios), 1e-12)

    def distance(p: Point) -> tuple[float, float]:
        ratio = p.served.latency.ratio
        return round((p.loss / tolerated) ** 2 + ((ratio - least) / spread) ** 2, 9), ratio

    return min(best, key=distance)


def _dominates(a: Point, b: Point) -> bool:
    ours, theirs = (a.loss, a.served.latency.ratio), (b.loss, b.served.latency.ratio)
    return ours != theirs and ours[0] <= theirs[0] and ours[1] <= theirs[1]
