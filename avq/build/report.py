"""report.html of one build: verdict, what was tried, where float and INT8 disagree, why each layer is what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec

from avq import __version__
from avq.build.disagreement import SHOWN_SCORE, worst_pairs
from avq.build.outcome import Outcome
from avq.build.planning import Planned
from avq.build.probe_set import ProbeSet
from avq.build.understand.frontend import Understood
from avq.engines.isa import instruction_set
from avq.measure.fidelity import FIRM_SCORE
from avq.render import (
    Bar,
    Fact,
    Html,
    Mark,
    bar_chart,
    code,
    headline_of,
    key_figures,
    page,
    prose,
    section,
    table,
)

_SHOWN_FRAMES = 4


def report_page(outcome: Outcome, understood: Understood, planned: Planned, probe_set: ProbeSet) -> str:
    """One self-contained page; nothing on it is fetched."""
    sections = [
        _figures(outcome),
        _engines(outcome),
        *_notes(planned),
        *_disagreements(outcome, understood, probe_set),
        *_layers(planned),
        _model(outcome, understood),
        _next(outcome),
    ]
    title = f"avq build: {outcome.recipe.model.name}"
    footer = f"avq {__version__}, {instruction_set()}, {outcome.seconds:.0f} s"
    return page(title, headline_of(outcome.verdict), sections, footer=footer)


def _figures(outcome: Outcome) -> Html:
    summary = outcome.summary()
    chosen, latency = summary["chosen"], outcome.chosen.latency
    facts = [
        Fact("engine", outcome.chosen.candidate.engine, note=outcome.chosen.runs_in),
        Fact("multiply-adds in INT8", f"{100 * outcome.int8_mac_share:.1f} %"),
    ]
    if latency is not None:
        interval = f"95 % interval {latency.ratio_low:.2f} to {latency.ratio_high:.2f}"
        facts.append(Fact("p50", f"{latency.p50_ms:.2f} ms", note=f"p99 {latency.p99_ms:.2f} ms"))
        facts.append(Fact(f"time / {latency.float_engine}", f"{latency.ratio:.2f}", note=interval))
    if chosen["lost"] is not None:
        facts.append(Fact("lost boxes", f"{100 * chosen['lost']:.2f} %", note=f"score >= {FIRM_SCORE:g}"))
        facts.append(Fact("confidence shift", f"{chosen['confidence_shift']:+.4f}"))
    if chosen["map"] is not None:
        facts.append(
            Fact("mAP50-95", f"{chosen['map']:.4f}", note=f"float {summary['float']['map']:.4f}, held out")
        )
    return section("In short", key_figures(facts))


def _engines(outcome: Outcome) -> Html:
    timed = [t for t in outcome.trials if t.latency is not None]
    bars = [
        Bar(t.candidate.label, t.latency.p50_ms, "good" if t is outcome.chosen else "plain")
        for t in timed
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


def _notes(planned: Planned) -> list[Html]:
    return [section(title, table(_same_keys(rows))) for title, rows in planned.notes if rows]


def _same_keys(rows: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    keys = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key, "") for key in keys} for row in rows]


def _disagreements(outcome: Outcome, understood: Understood, probe_set: ProbeSet) -> list[Html]:
    found, expected = outcome.verified.detections, probe_set.float_detections
    if found is None or expected is None:
        return []
    names = understood.class_names
    pairs = worst_pairs(probe_set.items, expected, found, names, named="this bundle", count=_SHOWN_FRAMES)
    lead = f"Of the pictures judged on, worst first; boxes with score >= {SHOWN_SCORE:g}."
    return [section("Where float and this bundle disagree most", *pairs, lead=lead)]


def _layers(planned: Planned) -> list[Html]:
    plan = planned.plan
    if not plan.precisions:
        return []
    rows = [
        {"node": name, "precision": p.precision, "reason": p.reason}
        for name, p in sorted(plan.precisions.items(), key=lambda entry: (entry[1].precision, entry[0]))
    ]
    return [
        section("Every layer and why", table(rows), lead=f"Decided by {plan.owner} {plan.owner_version}.")
    ]


def _model(outcome: Outcome, understood: Understood) -> Html:
    spec = msgspec.to_builtins(understood.spec)
    rows = [{"setting": key, "value": str(value)} for key, value in spec.items()]
    head = understood.decoder
    facts = [*understood.messages, *(f"warning: {w}" for w in understood.warnings)]
    return section(
        "Model, preprocessing and data",
        prose("\n".join(facts) or "The model needed no changes."),
        table(
            [
                {"setting": "head", "value": head.family},
                {"setting": "classes", "value": str(head.num_classes)},
            ]
        ),
        table(rows),
        prose(
            f"Measured on {len(outcome.verified.detections or ())} held-out pictures of {outcome.recipe.data}, "
            f"{outcome.recipe.threads} thread(s), instruction set {instruction_set()}."
        ),
    )


def _next(outcome: Outcome) -> Html:
    done = replace(outcome, folder=outcome.recipe.output if outcome.answer_is_yes else outcome.folder)
    return section("What to type next", code("\n".join(done.closing())))
