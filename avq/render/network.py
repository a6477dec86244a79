"""A network from its input to its outputs at a glance: one column per group, and pairs of bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from avq.render.charts import Mark, columns_chart
from avq.render.page import Html, Tone, number

_COLUMNS = 180
#: A quarter of a decade above an empty bin: single counts still show.
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

    The root keeps small ones visible beside one large one.
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
