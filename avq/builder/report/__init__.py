"""report.html of one build: the verdict first, then the measurements behind it, one section per topic."""

from __future__ import annotations

from avq import __version__
from avq.builder.calibrate.ranges import HistogramStats
from avq.builder.context import BuildContext
from avq.builder.outcome import Outcome
from avq.builder.planning import Planned
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
    summary,
)
from avq.builder.report.thresholds import thresholds
from avq.builder.trials.bench import layer_costs
from avq.engines.cpu import instruction_set
from avq.render import headline_of, page


def report_page(outcome: Outcome, planned: Planned, context: BuildContext) -> str:
    """Profile the chosen engine and return one self-contained HTML page; it loads nothing from elsewhere."""
    used = context.calibration.used
    stats = HistogramStats(used.histograms) if used is not None else None
    costs = layer_costs(planned.plan, outcome.chosen.candidate, context)
    data = ReportData(outcome, planned, context, stats, costs)
    sections = [
        summary(outcome),
        *figures(planned),
        engines(outcome),
        *disagreements(data),
        *time_spent(data),
        *groups(data),
        *thresholds(data),
        *notes(planned),
        model(data),
        machine(data),
        next_steps(outcome),
    ]
    title = f"avq build: {outcome.recipe.model.name}, strategy {outcome.recipe.strategy}"
    footer = f"avq {__version__}, {instruction_set()}, built in {outcome.seconds:.0f} s"
    return page(title, headline_of(outcome.verdict), sections, footer=footer)


__all__ = ["report_page"]
