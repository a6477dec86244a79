"""Reasons, tables and the chart of a mixed plan."""

from __future__ import annotations

from collections.abc import Sequence

from avq.types import AnyArray, Figure, FigurePoint, GroupRow, Series
from avq_mixed.fit import Counted, crossings
from avq_mixed.front import SQNR_DB, Point, loss_limit
from avq_mixed.groups import Group
from avq_mixed.sensitivity import Sensitivity
from avq_mixed.solve import Problem


def group_rows(
    groups: Sequence[Group],
    measured: Sequence[Sensitivity],
    problem: Problem,
    int8: AnyArray,
    counted: Counted | None,
) -> list[GroupRow]:
    """Return one row per group, in graph order.

    Args:
        groups: fusion groups in graph order.
        measured: sensitivity of each group.
        problem: predicted times and damages.
        int8: (groups,) bool, the chosen map.
        counted: time of each group in context; None when the engine has no layer times.
    """
    reasons = group_reasons(groups, problem, int8)
    crossing = _crossing_costs(problem, int8)
    return [
        GroupRow(
            name=group.name,
            kind=group.kind,
            precision="int8" if int8[index] else "fp32",
            reason=reasons[group.name],
            nodes=len(group.nodes),
            sensitivity=measured[index].badness,
            float_ns=int(counted.float_ns[index]) if counted else None,
            int8_ns=int(counted.int8_ns[index]) if counted else None,
            int8_gain=float(problem.cost.group[index]),
            boundary=crossing[index],
        )
        for index, group in enumerate(groups)
    ]


def group_reasons(groups: Sequence[Group], problem: Problem, int8: AnyArray) -> dict[str, str]:
    """Return group -> reason for its precision in ``int8``, compared with the map that flips this group only."""
    here = problem.cost.predict(int8)
    reasons = {}
    for index, group in enumerate(groups):
        flipped = int8.copy()
        flipped[index] = not flipped[index]
        change = 100 * (problem.cost.predict(flipped) - here)
        share = 100 * problem.damage[index]
        other, verb = ("float", "avoid") if int8[index] else ("INT8", "add")
        reasons[group.name] = (
            f"{group.kind}: {other} would take {change:+.2f} % time and {verb} {share:.1f} % of the damage"
        )
    return reasons


def _crossing_costs(problem: Problem, int8: AnyArray) -> list[float]:
    """Return per group the cost of boundaries at its inputs in ``int8``, as a share of the float time."""
    up, down = crossings(problem.cost.boundaries, int8)
    paid = problem.cost.up * up + problem.cost.down * down
    costs = [0.0] * len(int8)
    for boundary, cost in zip(problem.cost.boundaries, paid, strict=True):
        if boundary.reader >= 0:
            costs[boundary.reader] += float(cost)
    return costs


# The measured points as a chart: time against loss.

_LEAD = (
    "Every point was built, checked on its engine and timed interleaved with float; bars are 95 % "
    "intervals. Lower left is better."
)


def front_figure(points: Sequence[Point], chosen: Point, max_drop: float | None) -> Figure:
    """Return the chart: the front of time and loss as a line, other plans as points, the gate's limit."""
    best = [p for p in points if not any(_better(other, p) for other in points)]
    others = [p for p in points if not any(p is kept for kept in best)]
    decoded = any(p.served.score.fidelity is not None for p in points)
    limit = (loss_limit(points) if max_drop is None else max_drop) if decoded else -SQNR_DB
    labelled = any(p.served.score.map_drop_percent is not None for p in points)
    lost = "mAP lost, %" if labelled else "boxes lost, %"
    return Figure(
        title="Measured plans: time against loss",
        x_label="time / fastest float engine",
        y_label=lost if decoded else "noise at the worst output, dB",
        series=(
            Series("front", _points(best, chosen), line=True),
            Series("slower and no better than another", _points(others, chosen)),
        ),
        lead=_LEAD,
        y_limit=limit,
    )


def _better(a: Point, b: Point) -> bool:
    """Compare time and loss as drawn: the front uses medians; intervals show the uncertainty."""
    ours, theirs = (a.served.latency.ratio, _loss(a)), (b.served.latency.ratio, _loss(b))
    return ours != theirs and ours[0] <= theirs[0] and ours[1] <= theirs[1]


def _points(points: Sequence[Point], chosen: Point) -> tuple[FigurePoint, ...]:
    return tuple(
        FigurePoint(
            x=point.served.latency.ratio,
            y=_loss(point),
            label=point.name,
            chosen=point is chosen,
            x_low=point.served.latency.ratio_low,
            x_high=point.served.latency.ratio_high,
        )
        for point in sorted(points, key=lambda p: p.served.latency.ratio)
    )


def _loss(point: Point) -> float:
    score = point.served.score
    if score.map_drop_percent is not None:
        return 0.0 if point.is_float else score.map_drop_percent
    if score.fidelity is not None:
        return 100.0 * score.fidelity.lost
    return -min(score.sqnr_db.values(), default=0.0)
