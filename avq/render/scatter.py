"""Points and lines on two axes: fronts and curves that a strategy measured.

Shapes are inline SVG stretched to the page; dots are round line caps, which stretching leaves round, and every
word is text of the page, so that a phone shows it as large as the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from avq.render.page import Html, number
from avq.types import Figure, FigurePoint, Series

_SIZE = 1000.0
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
#: Values above this multiple of the limit are compressed at the end of an axis.
_FAR = 8.0
#: Points at zero are drawn slightly above the axis.
_ROOM_BELOW = 0.06
#: Names nearer to each other than this, in percent of the chart, would overlap.
_CLEAR_X, _CLEAR_Y = 17.0, 7.0


@dataclass(frozen=True)
class Axis:
    """Values to 0..1. With ``bend`` it is linear up to there and logarithmic beyond (asinh)."""

    low: float
    high: float
    bend: float | None = None

    def share(self, value: float) -> float:
        low, high = self._bent(self.low), self._bent(self.high)
        return (self._bent(value) - low) / ((high - low) or 1.0)

    def ticks(self) -> list[float]:
        """Round values inside the axis, far enough apart to be read."""
        if self.bend is None:
            return [
                v for v in _round_values(self.low, self.high) if v >= 0 or self.low < -_ROOM_BELOW * self.high
            ]
        decades = [m * 10.0**e for e in range(-9, 10) for m in (1.0, 2.0, 5.0)]
        found: list[float] = [0.0]
        for value in decades:
            if value <= self.high and self.share(value) - self.share(found[-1]) > 0.11:
                found.append(value)
        return found

    def _bent(self, value: float) -> float:
        return value if self.bend is None else math.asinh(value / self.bend)


def figure_chart(figure: Figure) -> Html:
    """The chart of a figure: axes, ticks, 95 % intervals, the limit, and the chosen point marked."""
    points = [p for s in figure.series for p in s.points if math.isfinite(p.x + p.y)]
    if not points:
        return Html('<p class="lead">no points</p>')
    x = _x_axis(points)
    y = _y_axis([p.y for p in points], figure.y_limit)
    marks = "".join(_series(s, n, x, y) for n, s in enumerate(figure.series))
    limit = _rule(y.share(figure.y_limit)) if figure.y_limit is not None else ""
    grid = "".join(_grid(y.share(v)) for v in y.ticks())
    svg = (
        f'<svg viewBox="0 0 {_SIZE:.0f} {_SIZE:.0f}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(figure.title)}">{grid}{limit}{marks}</svg>'
    )
    ticks = "".join(_tick("left", x.share(v), v) for v in x.ticks())
    ticks += "".join(_tick("bottom", y.share(v), v) for v in y.ticks())
    return Html(
        f'<figure><p class="axis-name">{escape(figure.y_label)}</p>'
        f'<div class="scatter">{svg}{ticks}{_names(figure.series, x, y)}</div>'
        f'<p class="axis-name right">{escape(figure.x_label)}</p>{_legend(figure)}</figure>'
    )


def _x_axis(points: Sequence[FigurePoint]) -> Axis:
    values = [v for p in points for v in (p.x, p.x_low, p.x_high) if v is not None and math.isfinite(v)]
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(0.0 if 0 <= low < room else low - room, high + room)


def _y_axis(values: Sequence[float], limit: float | None) -> Axis:
    """From zero where nothing is negative; the far end bent where it would squeeze what lies at the limit."""
    ends = [*values, *([] if limit is None else [limit])]
    low, high = min(ends), max(ends)
    if low < 0:
        room = 0.08 * (high - low) or 1.0
        return Axis(low - room, high + room)
    usual = limit or sorted(values)[len(values) // 2]
    bent = usual > 0 and high > _FAR * usual
    top = (high * (1.5 if bent else 1.12)) or 1.0
    return Axis(-_ROOM_BELOW * (usual if bent else top), top, usual if bent else None)


def _round_values(low: float, high: float) -> list[float]:
    wanted = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(wanted))
    step = next(unit * s for s in _STEPS if unit * s >= wanted * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _series(series: Series, index: int, x: Axis, y: Axis) -> str:
    shown = [p for p in series.points if math.isfinite(p.x + p.y)]
    places = [(_SIZE * x.share(p.x), _SIZE * (1 - y.share(p.y))) for p in shown]
    line = ""
    if series.line and len(places) > 1:
        path = "L".join(f"{px:.1f} {py:.1f}" for px, py in places)
        line = f'<path class="join" d="M{path}" vector-effect="non-scaling-stroke"/>'
    whiskers = "".join(_interval(p, py, x) for p, (_, py) in zip(shown, places, strict=True))
    dots = "".join(_dot(p, place) for p, place in zip(shown, places, strict=True))
    return f'<g class="series s{index % 4}">{line}{whiskers}{dots}</g>'


def _interval(point: FigurePoint, py: float, x: Axis) -> str:
    if point.x_low is None or point.x_high is None or not math.isfinite(point.x_low + point.x_high):
        return ""
    ends = _SIZE * x.share(point.x_low), _SIZE * x.share(point.x_high)
    return f'<path class="interval" d="M{ends[0]:.1f} {py:.1f}H{ends[1]:.1f}" vector-effect="non-scaling-stroke"/>'


def _dot(point: FigurePoint, place: tuple[float, float]) -> str:
    at = f'd="M{place[0]:.1f} {place[1]:.1f}h.001" vector-effect="non-scaling-stroke"'
    label = f"{point.label}: {number(point.x)}, {number(point.y)}".lstrip(": ")
    ring = f'<path class="ring" {at}/>' if point.chosen else ""
    kind = "dot chosen" if point.chosen else "dot"
    return f'{ring}<path class="{kind}" {at}><title>{escape(label)}</title></path>'


def _grid(share: float) -> str:
    height = _SIZE * (1 - share)
    return f'<path class="grid" d="M0 {height:.1f}H{_SIZE:.0f}" vector-effect="non-scaling-stroke"/>'


def _rule(share: float) -> str:
    height = _SIZE * (1 - share)
    return f'<path class="limit" d="M0 {height:.1f}H{_SIZE:.0f}" vector-effect="non-scaling-stroke"/>'


def _tick(side: str, share: float, value: float) -> str:
    kind = "xt" if side == "left" else "yt"
    return f'<span class="{kind}" style="{side}:{100 * share:.1f}%">{escape(number(value))}</span>'


def _names(series: Sequence[Series], x: Axis, y: Axis) -> str:
    """Draw names next to their points: the chosen one first, others where there is space."""
    named = [p for s in series for p in s.points if p.label and math.isfinite(p.x + p.y)]
    taken: list[tuple[float, float]] = []
    shown = []
    for point in sorted(named, key=lambda p: not p.chosen):
        px, py = 100 * x.share(point.x), 100 * y.share(point.y)
        if all(abs(px - ox) > _CLEAR_X or abs(py - oy) > _CLEAR_Y for ox, oy in taken):
            taken.append((px, py))
            side = f"right:{100 - px:.1f}%" if px > 60 else f"left:{px:.1f}%"
            kind = "name chosen" if point.chosen else "name"
            shown.append(f'<span class="{kind}" style="{side};bottom:{py:.1f}%">{escape(point.label)}</span>')
    return "".join(shown)


def _legend(figure: Figure) -> str:
    items = "".join(
        f'<span class="s{n % 4}"><b></b>{escape(s.name)}</span>'
        for n, s in enumerate(figure.series)
        if s.name and s.points
    )
    if any(p.chosen for s in figure.series for p in s.points):
        items += '<span class="ringed"><b></b>chosen</span>'
    if figure.y_limit is not None:
        items += f'<span class="bad"><i></i>limit {escape(number(figure.y_limit))}</span>'
    return f'<div class="legend">{items}</div>'
