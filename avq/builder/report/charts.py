"""What the strategy drew and noted: fronts, curves, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from avq.builder.planning import Planned
from avq.render import Html, figure_chart, folded, section, table

_SHORT, _NARROW = 8, 8


def figures(planned: Planned) -> list[Html]:
    """One section per chart."""
    return [section(f.title, figure_chart(f), lead=f.lead) for f in planned.figures]


def notes(planned: Planned) -> list[Html]:
    """One section per table; long and wide ones fold."""
    return [section(_capital(title), _table(rows)) for title, rows in planned.notes if rows]


def _table(rows: Sequence[Mapping[str, object]]) -> Html:
    keys = dict.fromkeys(key for row in rows for key in row)
    same = [{key: row.get(key, "") for key in keys} for row in rows]
    chosen = next(
        (i for i, row in enumerate(same) if row.get("chosen") is True or row.get("kept") is True), None
    )
    whole = table(same, chosen=chosen)
    return whole if len(same) <= _SHORT and len(keys) <= _NARROW else folded(f"all {len(same)} rows", whole)


def _capital(title: str) -> str:
    return title[:1].upper() + title[1:]
