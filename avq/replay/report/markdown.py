"""The difference as Markdown, made for a pull-request comment: the answer first, details folded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from avq.replay.outcome import Outcome, told, told_cells
from avq.replay.stages import table_of

#: GitHub refuses comments above 65536 characters.
_LIMIT = 60_000
_SHOWN = 100


def markdown(outcome: Outcome, *, folded: bool = True) -> str:
    """One comment; long lists are cut, and say so. ``folded=False`` is for a terminal."""
    result = outcome.result
    parts = [f"### avq replay: {outcome.headline}"]
    parts.append(
        f"`{_base(result.log)}` ({result.log_digest[:12]}), bundle `{result.bundle_digest[:12]}`"
        + (f" against {outcome.reference_name}" if outcome.reference_name else "")
    )
    if outcome.reasons:
        parts.append("\n".join(f"- {reason}" for reason in outcome.reasons))
    if outcome.verdict is not None:
        changes = outcome.verdict.changes()
        parts.append(_table([{name.replace("_", " "): _plain(value) for name, value in changes.items()}]))
        parts.append(f"Compared: {outcome.verdict.tier}; {outcome.verdict.why}.")
        if outcome.differences:
            cells = told_cells(outcome.verdict.metric.rows())
            parts.append(_part(folded, "By class and size, boxes with score >= 0.5", _table(cells)))
            rows = [told(d, result.labels) for d in outcome.differences[:_SHOWN]]
            title = f"{len(outcome.differences)} differences" + (
                f", the first {_SHOWN}" if len(outcome.differences) > _SHOWN else ""
            )
            parts.append(_part(folded, title, _table(rows)))
    stages = outcome.paired.rows() if outcome.paired is not None else table_of(result).rows()
    parts.append(_part(folded, "Stage times on this machine, ms", _table(stages)))
    text = "\n\n".join(parts) + "\n"
    return text if len(text) <= _LIMIT else text[: text.rfind("\n", 0, _LIMIT)] + "\n\n(cut)\n</details>\n"


def _base(log: str) -> str:
    return log.rstrip("/").rsplit("/", 1)[-1] if "://" not in log else log


def _part(folded: bool, title: str, body: str) -> str:
    if not folded:
        return f"{title}\n\n{body}"
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    if not rows:
        return "none"
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(_cell(row.get(name)) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    return str(_plain(value)).replace("|", "\\|").replace("\n", " ")


def _plain(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else ("" if value is None else value)
