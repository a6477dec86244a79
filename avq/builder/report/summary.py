"""Sections of the report: key figures, engines, tables, model, machine, worst pictures, next commands."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from avq.builder.calibrate.ranges import HistogramStats
from avq.builder.context import BuildContext
from avq.builder.outcome import Outcome
from avq.builder.pictures.dataset import Item, read_picture
from avq.builder.planning import Planned
from avq.builder.trials.layer_times import LayerCosts
from avq.engines.cpu import instruction_set
from avq.measure.fidelity import FIRM_SCORE, matched_shifts
from avq.render import (
    Bar,
    Fact,
    Html,
    Mark,
    bar_chart,
    code,
    draw_detections,
    figure_chart,
    folded,
    key_figures,
    picture_pair,
    prose,
    section,
    table,
)
from avq.types import Detections


@dataclass(frozen=True)
class ReportData:
    """Data of one report.

    Attributes:
        outcome: the result of the build.
        planned: the plan, with the strategy's figures and tables.
        context: the inputs of the build.
        stats: counts of the calibration pass; None for a float bundle.
        costs: measured layers of the chosen engine, float and as built; None where it does not profile.
    """

    outcome: Outcome
    planned: Planned
    context: BuildContext
    stats: HistogramStats | None = None
    costs: LayerCosts | None = None


def summary(outcome: Outcome) -> Html:
    """Return the key figures: engine, share in INT8, time and loss."""
    answer = outcome.summary()
    chosen, latency = answer["chosen"], outcome.chosen.latency
    facts = [
        Fact("engine", outcome.chosen.candidate.engine, note=f"runs in {outcome.chosen.runs_in or 'float'}"),
        Fact("multiply-adds in INT8", f"{100 * outcome.int8_mac_share:.1f} %"),
    ]
    if latency is not None:
        interval = f"95 % interval {latency.ratio_low:.2f} to {latency.ratio_high:.2f}"
        facts.append(Fact("p50", f"{latency.p50_ms:.2f} ms", note=f"p99 {latency.p99_ms:.2f} ms"))
        facts.append(Fact(f"time / {latency.float_engine}", f"{latency.ratio:.2f}", note=interval))
    if chosen["lost"] is not None:
        facts.append(
            Fact(
                "boxes lost", f"{100 * chosen['lost']:.2f} %", note=f"of float's with score >= {FIRM_SCORE:g}"
            )
        )
        facts.append(
            Fact("confidence shift", f"{chosen['confidence_shift']:+.4f}", note="mean, matched boxes")
        )
    if chosen["map"] is not None:
        facts.append(
            Fact("mAP50-95", f"{chosen['map']:.4f}", note=f"float {answer['float']['map']:.4f}, held out")
        )
    return section("Summary", key_figures(facts))


def engines(outcome: Outcome) -> Html:
    """Return the p50 bars with the budget, and the table of all engines."""
    bars = [
        Bar(t.label, t.latency.p50_ms, "good" if t is outcome.chosen else "plain")
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


_SHORT, _NARROW = 8, 8


def figures(planned: Planned) -> list[Html]:
    """Return one section per chart of the strategy."""
    return [section(f.title, figure_chart(f), lead=f.lead) for f in planned.figures]


def notes(planned: Planned) -> list[Html]:
    """Return one section per table of the strategy; long and wide ones fold."""
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


def next_steps(outcome: Outcome) -> Html:
    """Return the closing lines of the command, with the final path of the bundle."""
    done = replace(outcome, published=outcome.passed)
    return section("Next commands", code("\n".join(done.footer())))


def machine(data: ReportData) -> Html:
    """Return the table of processor, engines, threads and pictures."""
    recipe, request = data.outcome.recipe, data.context.request
    pictures = data.outcome.verified.pictures
    judged = len(data.context.holdout.items) if pictures is None else len(pictures.items)
    counted = data.outcome.chosen.latency
    rows = [
        {"what": "processor", "value": f"{_processor()}, {os.cpu_count()} cores visible"},
        {"what": "instruction set", "value": instruction_set()},
        {
            "what": "system",
            "value": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        },
        {"what": "engines", "value": ", ".join(_versions(data))},
        {"what": "threads of the engine", "value": str(recipe.threads)},
        {"what": "time", "value": _time(counted is not None)},
        {"what": "judged on", "value": f"{judged} pictures of {recipe.data}"},
        {
            "what": "reference",
            "value": f"unoptimised {request.reference.name} runs define the numbers of a plan",
        },
    ]
    lead = "Times hold for this machine only; losses hold for these pictures."
    return section("Machine and method", table(rows), lead=lead)


def _versions(data: ReportData) -> list[str]:
    return [f"{e.name} {e.status().version}" for e in data.context.request.float_engines.values()]


def _time(measured: bool) -> str:
    if not measured:
        return "not measured: the target cannot run here"
    return "candidates in turns on one picture, paired with the fastest float engine, 95 % intervals"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(named, "") or platform.processor() or platform.machine()


def model(data: ReportData) -> Html:
    """Return the remarks of the analysis, the head and the preprocessing."""
    analysis = data.context.analysis
    spec, head = msgspec.to_builtins(analysis.spec), analysis.decoder
    facts = [*analysis.messages, *(f"warning: {w}" for w in analysis.warnings)]
    settings = [{"setting": key, "value": str(value)} for key, value in spec.items()]
    rows = [
        {"setting": "head", "value": head.family},
        {"setting": "classes", "value": str(head.num_classes)},
        *settings,
    ]
    text = ". ".join(fact.rstrip(".") for fact in facts) + "." if facts else "The model needed no changes."
    return section("Model and preprocessing", prose(_capital(text)), table(rows))


#: Boxes below this score are not drawn.
SHOWN_SCORE = 0.3


def worst_pairs(
    items: Sequence[Item],
    expected: Sequence[Detections],
    found: Sequence[Detections],
    class_names: Sequence[str],
    *,
    named: str,
    count: int,
) -> list[Html]:
    """Draw up to ``count`` pictures, worst first: the float model's boxes left, those of ``named`` right."""
    ranked = sorted(range(len(found)), key=lambda i: -_disagreement(expected[i], found[i]))
    pairs = []
    for index in ranked[:count]:
        pixels, name = read_picture(items[index]), items[index].path.name
        left = draw_detections(pixels, expected[index], class_names, min_score=SHOWN_SCORE)
        right = draw_detections(pixels, found[index], class_names, min_score=SHOWN_SCORE)
        pairs.append(picture_pair(left, right, (f"{name}: float", f"{name}: {named}")))
    return pairs


def _disagreement(expected: Detections, found: Detections) -> float:
    """Count confident boxes lost, plus the score shifts of the others."""
    confident = expected.above(FIRM_SCORE)
    shifts = matched_shifts(confident, found)
    return len(confident) - len(shifts) + float(abs(shifts).sum())


_SHOWN_FRAMES = 4


def disagreements(data: ReportData) -> list[Html]:
    """Return the pictures with the largest differences; nothing for models without boxes."""
    found, pictures = data.outcome.verified.detections, data.outcome.verified.pictures
    if found is None or pictures is None:
        return []
    names = data.context.analysis.class_names
    pairs = worst_pairs(
        pictures.items, pictures.float_detections, found, names, named="this bundle", count=_SHOWN_FRAMES
    )
    lead = f"The worst of {len(found)} pictures, worst first; boxes with score >= {SHOWN_SCORE:g}."
    return [section("Largest differences between float and this bundle", *pairs, lead=lead)]
