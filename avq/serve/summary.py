"""The books, the stages, and what went wrong: what a person reads after a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from avq.daemon import RunSummary

Tables = list[tuple[str, list[Mapping[str, object]]]]


def summary_tables(summary: RunSummary) -> Tables:
    """The books, the stages, and what went wrong: what a person reads after a run."""
    answer = summary.as_json()
    dropped = ", ".join(f"{cause} {count}" for cause, count in answer["dropped"].items())
    books = {key: answer[key] for key in ("captured", "published", "in_flight", "misses")}
    stages: list[Mapping[str, object]] = [
        {"stage": name, **values} for name, values in answer["stages"].items()
    ]
    tables: Tables = [
        ("Frames", [{**books, "dropped": dropped or "none"}]),
        ("Milliseconds per stage", stages),
    ]
    tables += _beside(answer)
    if answer["events"]:
        tables.append(("Events", answer["events"]))
    return tables


def _beside(answer: Mapping[str, Any]) -> Tables:
    """What the candidate in the shadow and the drift watch found, where they looked."""
    tables: Tables = []
    if shadow := answer.get("shadow"):
        shown = {**shadow, "candidate": shadow["candidate"][:12], "serving": shadow["serving"][:12]}
        tables.append(("Candidate in the shadow", [shown]))
    if drift := answer.get("drift"):
        rows = [{"camera": camera, **row} for camera, row in drift.get("cameras", {}).items()]
        shown_rows: list[Mapping[str, object]] = [
            {**row, "unusual": ", ".join(row["unusual"][:2])} for row in rows
        ]
        tables.append(("Drift", shown_rows or [{"why": drift.get("why", "no picture was looked at")}]))
    return tables
