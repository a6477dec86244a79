"""report.html of one build: the verdict first, then every number it rests on, one section per file."""

from __future__ import annotations

from avq import __version__
from avq.builder.report.layers import groups, time_spent
from avq.builder.report.summary import (
    ReportData,
    disagreements,
    engines,
    figures,
    machine,
    model,
    next_steps,
    notes,
    short,
)
from avq.builder.report.thresholds import thresholds
from avq.engines.cpu import instruction_set
from avq.render import headline_of, page


def report_page(story: ReportData) -> str:
    """One self-contained page; nothing on it is fetched."""
    outcome = story.outcome
    sections = [
        short(outcome),
        *figures(story.planned),
        engines(outcome),
        *disagreements(story),
        *time_spent(story),
        *groups(story),
        *thresholds(story),
        *notes(story.planned),
        model(story),
        machine(story),
        next_steps(outcome),
    ]
    title = f"avq build: {outcome.recipe.model.name}, strategy {outcome.recipe.strategy}"
    footer = f"avq {__version__}, {instruction_set()}, built in {outcome.seconds:.0f} s"
    return page(title, headline_of(outcome.verdict), sections, footer=footer)


__all__ = ["ReportData", "report_page"]
