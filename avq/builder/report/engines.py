"""Every engine that was tried, and what became of it."""

from __future__ import annotations

from avq.builder.outcome import Outcome
from avq.render import Bar, Html, Mark, bar_chart, section, table


def engines(outcome: Outcome) -> Html:
    """p50 bars with the budget, then the whole table."""
    bars = [
        Bar(t.candidate.label, t.latency.p50_ms, "good" if t is outcome.chosen else "plain")
        for t in outcome.trials
        if t.latency is not None
    ]
    budget = outcome.recipe.budget_ms
    mark = Mark("budget", budget, "bad") if budget is not None else None
    chosen = next((i for i, t in enumerate(outcome.trials) if t == outcome.chosen), None)
    return section(
        "Engines tried",
        bar_chart(bars, unit="ms", title="p50 of one inference, interleaved", mark=mark),
        table([t.row() for t in outcome.trials], chosen=chosen),
        lead="Each candidate is compared on its own engine with the unoptimised reference of the same model.",
    )
