"""The measured points as a chart: time against loss."""

from __future__ import annotations

from collections.abc import Sequence

from avq.types import Figure, FigurePoint, Series
from avq_mixed.front import SQNR_DB, Point, loss_limit

_LEAD = (
    "Every point was built, checked on its own engine and timed against float in turns; bars are 95 % "
    "intervals. Lower left is better."
)


def front_figure(points: Sequence[Point], chosen: Point, max_drop: float | None) -> Figure:
    """The front of time and loss as a line, all else as points, the gate's limit across."""
    best = [p for p in points if not any(_better(other, p) for other in points)]
    others = [p for p in points if not any(p is kept for kept in best)]
    decoded = any(p.served.score.fidelity is not None for p in points)
    limit = (loss_limit(points) if max_drop is None else max_drop) if decoded else -SQNR_DB
    labelled = any(p.served.score.map_drop_percent is not None for p in points)
    lost = "mAP lost, %" if labelled else "boxes lost, %"
    return Figure(
        title="What was measured: time against loss",
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
    """In time and loss as drawn: a front by medians, the intervals say how sure it is."""
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
