"""What was measured on which machine, with what, on which pictures."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from avq.builder.calibrate.ranges import HistogramStats
from avq.builder.frontend.analyse import ModelAnalysis
from avq.builder.holdout import HoldoutSet
from avq.builder.outcome import Outcome
from avq.builder.pictures.dataset import Item, read_picture
from avq.builder.planning import Planned
from avq.builder.request import Request
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

# The few numbers to remember.


def short(outcome: Outcome) -> Html:
    """Engine, share in INT8, time and loss."""
    summary = outcome.summary()
    chosen, latency = summary["chosen"], outcome.chosen.latency
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
            Fact("mAP50-95", f"{chosen['map']:.4f}", note=f"float {summary['float']['map']:.4f}, held out")
        )
    return section("In short", key_figures(facts))


# Every engine that was tried, and what became of it.


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


# What the strategy drew and noted: fronts, curves, tables.

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


# What to type next.


def next_steps(outcome: Outcome) -> Html:
    """The closing lines of the command, with the bundle where it will lie."""
    done = replace(outcome, folder=outcome.recipe.output if outcome.answer_is_yes else outcome.folder)
    return section("What to type next", code("\n".join(done.closing())))


# All that the sections of a build's report are told from.


@dataclass(frozen=True)
class ReportData:
    """One build.

    Attributes:
        stats: counts of the calibration pass; None for a float bundle.
        costs: measured layers of the chosen engine, float against the plan; None where it does not tell.
    """

    outcome: Outcome
    request: Request
    analysis: ModelAnalysis
    planned: Planned
    holdout: HoldoutSet
    stats: HistogramStats | None = None
    costs: LayerCosts | None = None


def machine(story: ReportData) -> Html:
    """One table: processor, engines, threads, pictures."""
    recipe, request = story.outcome.recipe, story.request
    judged = len(story.holdout.items)
    counted = story.outcome.chosen.latency
    rows = [
        {"what": "processor", "value": f"{_processor()}, {os.cpu_count()} cores visible"},
        {"what": "instruction set", "value": instruction_set()},
        {
            "what": "system",
            "value": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        },
        {"what": "engines", "value": ", ".join(_versions(story))},
        {"what": "threads of the engine", "value": str(recipe.threads)},
        {"what": "time", "value": _time(counted is not None)},
        {"what": "judged on", "value": f"{judged} pictures of {recipe.data}"},
        {"what": "meaning", "value": f"unoptimised {request.reference.name} runs define what a plan means"},
    ]
    lead = "Times hold for this machine only; losses hold for these pictures."
    return section("What was measured on which machine", table(rows), lead=lead)


def _versions(story: ReportData) -> list[str]:
    return [f"{e.name} {e.status().version}" for e in story.request.float_engines.values()]


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


# What the model is and how its pictures are prepared.


def model(story: ReportData) -> Html:
    """Messages of the front end, the head, the preprocessing."""
    analysis = story.analysis
    spec, head = msgspec.to_builtins(analysis.spec), analysis.decoder
    facts = [*analysis.messages, *(f"warning: {w}" for w in analysis.warnings)]
    settings = [{"setting": key, "value": str(value)} for key, value in spec.items()]
    rows = [
        {"setting": "head", "value": head.family},
        {"setting": "classes", "value": str(head.num_classes)},
        *settings,
    ]
    said = ". ".join(fact.rstrip(".") for fact in facts) + "." if facts else "The model needed no changes."
    return section("Model and preprocessing", prose(_capital(said)), table(rows))


# The pictures on which a bundle and the float model disagree most, side by side.

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
    """Up to ``count`` pictures, worst first: the float model's boxes left, those of ``named`` right."""
    ranked = sorted(range(len(found)), key=lambda i: -_disagreement(expected[i], found[i]))
    pairs = []
    for index in ranked[:count]:
        pixels, name = read_picture(items[index]), items[index].path.name
        left = draw_detections(pixels, expected[index], class_names, min_score=SHOWN_SCORE)
        right = draw_detections(pixels, found[index], class_names, min_score=SHOWN_SCORE)
        pairs.append(picture_pair(left, right, (f"{name}: float", f"{name}: {named}")))
    return pairs


def _disagreement(expected: Detections, found: Detections) -> float:
    """Firm boxes lost, then how far the scores of the others moved."""
    firm = expected.above(FIRM_SCORE)
    shifts = matched_shifts(firm, found)
    return len(firm) - len(shifts) + float(abs(shifts).sum())


# The pictures on which float and the bundle disagree most, side by side.

_SHOWN_FRAMES = 4


def disagreements(story: ReportData) -> list[Html]:
    """Nothing for models without boxes."""
    found, expected = story.outcome.verified.detections, story.holdout.float_detections
    if found is None or expected is None:
        return []
    names = story.analysis.class_names
    pairs = worst_pairs(story.holdout.items, expected, found, names, named="this bundle", count=_SHOWN_FRAMES)
    lead = f"Of {len(found)} pictures judged on, worst first; boxes with score >= {SHOWN_SCORE:g}."
    return [section("Where float and this bundle disagree most", *pairs, lead=lead)]
