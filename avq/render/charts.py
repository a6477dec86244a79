"""Charts as inline SVG: shapes scale with the page, labels stay HTML text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from avq.render.page import Html, Tone, number

_WIDTH, _HEIGHT = 1000, 100
#: Largest number of columns; more frames are merged, keeping the largest value of each group.
_MAX_COLUMNS = 500


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar; ``low`` and ``high`` draw its interval, ``note`` is shown next to the value."""

    label: str
    value: float
    tone: Tone = "plain"
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """A line across a chart at ``value``, named in the legend."""

    label: str
    value: float
    tone: Tone = "plain"


def bar_chart(bars: Sequence[Bar], *, unit: str = "", title: str = "", mark: Mark | None = None) -> Html:
    """Horizontal bars from zero; values that are not finite are named and not drawn."""
    ends = [float(v) for b in bars for v in (b.value, b.high or 0.0) if math.isfinite(v)]
    top = max([*ends, mark.value if mark else 0.0, 0.0]) or 1.0
    rows = "".join(_bar_row(bar, top * 1.02, unit, mark) for bar in bars)
    return _figure(f'<div class="bars">{rows}</div>', title, _legend([mark] if mark else [], unit))


def histogram(
    values: Sequence[float],
    *,
    unit: str = "ms",
    title: str = "",
    marks: Sequence[Mark] = (),
    bins: int = 48,
) -> Html:
    """How often which value occurred, from zero to the largest value or mark; negative ones count as zero."""
    finite = [max(0.0, float(v)) for v in values if math.isfinite(v)]
    marks = [m for m in marks if math.isfinite(m.value)]
    if not finite:
        return _figure('<p class="lead">no values</p>', title, "")
    top = max([*finite, *(m.value for m in marks), 0.0]) or 1.0
    counts = [0] * bins
    for value in finite:
        counts[min(bins - 1, int(value / top * bins))] += 1
    late = _limit(marks)
    columns = [
        (count / max(counts), "bad" if late is not None and (n + 0.5) * top / bins > late else "plain")
        for n, count in enumerate(counts)
    ]
    lines = "".join(_vertical(m, m.value / top) for m in marks)
    axis = _axis("0", f"{number(top)} {unit}")
    return _figure(_plot(columns, lines) + axis, title, _legend(marks, unit))


def strip(
    values: Sequence[float],
    *,
    unit: str = "ms",
    title: str = "",
    limit: Mark | None = None,
    first: str = "first frame",
    last: str = "last frame",
) -> Html:
    """One thin column per frame in order, those above ``limit`` in its tone; long runs keep their worst."""
    finite = [max(0.0, float(v)) if math.isfinite(v) else 0.0 for v in values]
    if not finite:
        return _figure('<p class="lead">no frames</p>', title, "")
    step = math.ceil(len(finite) / _MAX_COLUMNS)
    worst = [max(finite[n : n + step]) for n in range(0, len(finite), step)]
    top = max([*worst, limit.value if limit else 0.0, 0.0]) * 1.05 or 1.0
    columns = [
        (value / top, limit.tone if limit is not None and value > limit.value else "plain") for value in worst
    ]
    line = _horizontal(limit, limit.value / top) if limit else ""
    return _figure(_plot(columns, line) + _axis(first, last), title, _legend([limit] if limit else [], unit))


def columns_chart(
    columns: Sequence[tuple[float, str]],
    *,
    title: str = "",
    ends: tuple[str, str],
    lines: Sequence[tuple[float, Mark]] = (),
    legend: str = "",
) -> Html:
    """Columns of (share of the height, tone) with lines at shares of the width; ``legend`` is markup."""
    rules = "".join(_vertical(mark, share) for share, mark in lines)
    marks = _legend([mark for _, mark in lines], "")
    extra = f'<div class="legend">{legend}</div>' if legend else ""
    return _figure(_plot(columns, rules) + _axis(*ends), title, marks + extra)


def _limit(marks: Sequence[Mark]) -> float | None:
    return min((m.value for m in marks if m.tone == "bad"), default=None)


def _bar_row(bar: Bar, top: float, unit: str, mark: Mark | None) -> str:
    length = max(0.0, bar.value / top * _WIDTH) if math.isfinite(bar.value) else 0.0
    shapes = f'<rect class="track" width="{_WIDTH}" height="{_HEIGHT}" rx="12"/>'
    shapes += f'<rect class="fill {bar.tone}" width="{length:.1f}" height="{_HEIGHT}" rx="12"/>'
    if bar.low is not None and bar.high is not None and math.isfinite(bar.low + bar.high):
        shapes += _line("whisker", bar.low / top * _WIDTH, 50, bar.high / top * _WIDTH, 50)
    if mark is not None:
        shapes += _line(f"rule {mark.tone}", mark.value / top * _WIDTH, -15, mark.value / top * _WIDTH, 115)
    value = f"{number(bar.value)} {unit}".strip() if math.isfinite(bar.value) else "\u2013"
    note = f" <small>{escape(bar.note)}</small>" if bar.note else ""
    return (
        f'<div class="row"><div class="name">{escape(bar.label)}</div>'
        f'<div class="bar"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" '
        f'aria-hidden="true">{shapes}</svg></div><div class="value">{escape(value)}{note}</div></div>'
    )


def _plot(columns: Sequence[tuple[float, str]], lines: str) -> str:
    """Columns of (share of the height, tone); thin ones of one tone are joined, so that no seams show."""
    width = _WIDTH / len(columns)
    shapes = "".join(_area(run, width) for run in _runs(columns, joined=width < 8))
    base = _line("base", 0, _HEIGHT, _WIDTH, _HEIGHT)
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" '
        f'aria-hidden="true">{shapes}{base}{lines}</svg>'
    )


def _runs(columns: Sequence[tuple[float, str]], *, joined: bool) -> list[tuple[int, str, list[float]]]:
    """(first column, tone, shares) of neighbours with the same tone; single columns unless ``joined``."""
    runs: list[tuple[int, str, list[float]]] = []
    for n, (share, tone) in enumerate(columns):
        if joined and runs and runs[-1][1] == tone:
            runs[-1][2].append(share)
        else:
            runs.append((n, tone, [share]))
    return runs


def _area(run: tuple[int, str, list[float]], width: float) -> str:
    first, tone, shares = run
    gap = 0.15 * width if width >= 8 else 0.0
    x = first * width
    path = f"M{x:.2f} {_HEIGHT}"
    for share in shares:
        path += f"V{_HEIGHT * (1 - share):.2f}h{width - gap:.3f}"
    return f'<path class="fill {tone}" d="{path}V{_HEIGHT}z"/>'


def _vertical(mark: Mark, share: float) -> str:
    return _line(f"rule {mark.tone}", share * _WIDTH, 0, share * _WIDTH, _HEIGHT)


def _horizontal(mark: Mark, share: float) -> str:
    return _line(f"rule {mark.tone}", 0, _HEIGHT * (1 - share), _WIDTH, _HEIGHT * (1 - share))


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return (
        f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        'stroke-width="1.75" vector-effect="non-scaling-stroke"/>'
    )


def _axis(left: str, right: str) -> str:
    return f'<div class="axis"><span>{escape(left)}</span><span>{escape(right)}</span></div>'


def _legend(marks: Sequence[Mark], unit: str) -> str:
    if not marks:
        return ""
    items = "".join(
        f'<span class="{m.tone}"><i></i>{escape(m.label)} {escape(number(m.value))} {escape(unit)}</span>'
        for m in marks
    )
    return f'<div class="legend">{items}</div>'


def _figure(body: str, title: str, legend: str) -> Html:
    head = f"<h3>{escape(title)}</h3>" if title else ""
    return Html(f"<figure>{head}{body}{legend}</figure>")


# Profile of a network: one column per group from input to output; pairs of bars.

_COLUMNS = 180
#: A quarter of a decade above an empty bin: single counts stay visible.
_FLOOR = 0.25


@dataclass(frozen=True, slots=True)
class PairRow:
    """Two numbers to compare: ``first`` (such as float) and ``second`` (such as INT8); None is not known."""

    label: str
    first: float | None
    second: float | None
    note: str = ""
    second_tone: Tone = "plain"


def pair_bars(rows: Sequence[PairRow], names: tuple[str, str], *, unit: str = "", title: str = "") -> Html:
    """Two thin bars per row from zero, on one scale."""
    known = [v for r in rows for v in (r.first, r.second) if v is not None and math.isfinite(v)]
    top = max([*known, 0.0]) or 1.0
    body = "".join(_pair(row, top, unit) for row in rows)
    legend = (
        f'<div class="legend"><span class="first"><b></b>{escape(names[0])}</span>'
        f'<span class="s0"><b></b>{escape(names[1])}</span></div>'
    )
    head = f"<h3>{escape(title)}</h3>" if title else ""
    return Html(f'<figure>{head}<div class="bars pairs">{body}</div>{legend}</figure>')


def _pair(row: PairRow, top: float, unit: str) -> str:
    def bar(value: float | None, kind: str) -> str:
        share = 0.0 if value is None or not math.isfinite(value) else max(0.0, 100 * value / top)
        return f'<span class="{kind}" style="width:{share:.2f}%"></span>'

    values = " / ".join("\u2013" if v is None else number(v) for v in (row.first, row.second))
    note = f" <small>{escape(row.note)}</small>" if row.note else ""
    return (
        f'<div class="row"><div class="name">{escape(row.label)}</div><div class="bar twice">'
        f"{bar(row.first, 'one first')}{bar(row.second, f'one {row.second_tone}')}</div>"
        f'<div class="value">{escape(values)} {escape(unit)}{note}</div></div>'
    )


def profile(
    values: Sequence[float],
    tones: Sequence[Tone],
    *,
    title: str = "",
    legend: Sequence[tuple[str, Tone]] = (),
) -> Html:
    """One column per group in graph order, coloured by its tone; the height is the square root of its share.

    The square root keeps small values visible next to a large one.
    """
    top = max([*values, 0.0]) or 1.0
    columns = [
        (max(0.04, math.sqrt(max(v, 0.0) / top)), str(tone)) for v, tone in zip(values, tones, strict=True)
    ]
    items = "".join(f'<span class="{tone} swatch"><b></b>{escape(name)}</span>' for name, tone in legend)
    return columns_chart(columns, title=title, ends=("input", "outputs"), legend=items)


def log_histogram(
    counts: Sequence[int], low: float, high: float, *, title: str = "", marks: Sequence[Mark] = ()
) -> Html:
    """How often values occurred, on a logarithmic count axis, with a line at each mark.

    ``counts`` are equal bins over ``low`` .. ``high``; many bins are joined to what can be seen.
    """
    step = max(1, math.ceil(len(counts) / _COLUMNS))
    joined = [sum(counts[n : n + step]) for n in range(0, len(counts), step)]
    top = math.log10(max([*joined, 1])) + _FLOOR
    columns = [((math.log10(n) + _FLOOR) / top if n else 0.0, "faint") for n in joined]
    span = (high - low) or 1.0
    shown = [m for m in marks if math.isfinite(m.value)]
    lines = [(min(1.0, max(0.0, (m.value - low) / span)), m) for m in shown]
    return columns_chart(columns, title=title, ends=(number(low), number(high)), lines=lines)
