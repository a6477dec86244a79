"""The demo's page: one table, the clip, how long frames took, float beside INT8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from avq.builder.outcome import Outcome
from avq.builder.pictures.dataset import CalibrationSet
from avq.builder.pictures.disagreement import worst_pairs
from avq.daemon import RunSummary
from avq.render import (
    Fact,
    Html,
    Mark,
    code,
    headline_of,
    histogram,
    key_figures,
    page,
    section,
    strip,
    table,
    video,
)
from avq.types import Detections, Frame

_SHOWN_PAIRS = 3


@dataclass(frozen=True)
class Served:
    """What the daemon published.

    Attributes:
        kept: frames with their boxes, for the clip.
        ages_ms: capture to publish, per published frame.
    """

    run: RunSummary
    kept: tuple[tuple[Frame, Detections], ...]
    ages_ms: tuple[float, ...]
    labels: tuple[str, ...]
    deadline_ms: float


def demo_page(
    rows: Sequence[Mapping[str, object]],
    outcome: Outcome,
    served: Served,
    pictures: CalibrationSet,
    floats: Sequence[Detections],
    found: Sequence[Detections],
    commands: Sequence[str],
) -> str:
    """One self-contained page beside its clip."""
    sections = [
        section("Float beside INT8", table(rows), lead="Drawn scenes neither model was made from."),
        section("The drive", video("drive.webm", "boxes of the INT8 bundle, as the daemon published them")),
        _serving(served),
        _pairs(pictures, floats, found, served.labels),
        section("Engines tried", table([trial.row() for trial in outcome.trials])),
        section("What to type next", code("\n".join(line.strip() for line in commands))),
    ]
    footer = (
        "Built-in scenes and detector: for the demo, the tests and the regression harness, not for roads."
    )
    return page("avq demo", headline_of(outcome.verdict), sections, footer=footer)


def _serving(served: Served) -> Html:
    run = served.run.as_json()
    deadline = Mark("deadline", served.deadline_ms, "bad")
    facts = [
        Fact("captured", str(run["captured"])),
        Fact("published", str(run["published"])),
        Fact("dropped", str(sum(run["dropped"].values())), note=_causes(run["dropped"])),
        Fact(
            "late",
            str(run["misses"]),
            note=f"over {served.deadline_ms:g} ms",
            tone="warn" if run["misses"] else "good",
        ),
        Fact("age p50", f"{run['p50_ms']:.1f} ms", note=f"p99 {run['p99_ms']:.1f} ms"),
    ]
    stages = [{"stage": name, **values} for name, values in run["stages"].items()]
    return section(
        "What the daemon did",
        key_figures(facts),
        strip(served.ages_ms, title="age of every published frame", limit=deadline),
        histogram(served.ages_ms, title="how often which age", marks=[deadline]),
        table(stages),
        lead="captured = published + dropped by cause + in flight, exactly.",
    )


def _causes(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{cause} {count}" for cause, count in dropped.items()) or "none"


def _pairs(
    pictures: CalibrationSet, floats: Sequence[Detections], found: Sequence[Detections], labels: Sequence[str]
) -> Html:
    """The pictures on which the two disagree most."""
    blocks = worst_pairs(pictures.items, floats, found, labels, named="INT8", count=_SHOWN_PAIRS)
    return section("Where they disagree most", *blocks, lead="Held-out scenes, worst first.")
