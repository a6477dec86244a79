"""report.html of one build: the verdict first, then every number it rests on, one section per file."""

from __future__ import annotations

from avq import __version__
from avq.build.report.charts import figures, notes
from avq.build.report.disagreements import disagreements
from avq.build.report.engines import engines
from avq.build.report.groups import groups
from avq.build.report.machine import machine
from avq.build.report.model import model
from avq.build.report.next_steps import next_steps
from avq.build.report.short import short
from avq.build.report.story import Story
from avq.build.report.thresholds import thresholds
from avq.build.report.time_spent import time_spent
from avq.engines.isa import instruction_set
from avq.render import headline_of, page


def report_page(story: Story) -> str:
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


__all__ = ["Story", "report_page"]
