"""Where the time goes, and why INT8 is slower where it is."""

from __future__ import annotations

from avq.builder.report.story import Story
from avq.builder.trials.layer_costs import LayerCosts
from avq.builder.trials.slower import Circumstances, Slower, find_slower
from avq.engines.cpu import instruction_set
from avq.render import Cause, Html, PairRow, Tone, causes, folded, pair_bars, section
from avq.toolbox import place
from avq.types import GraphView

_OTHERS, _CONVERSIONS = "everything else", "conversions the engine added"


def time_spent(story: Story) -> list[Html]:
    """Time by kind of operator where the engine tells, then every cause with its fix."""
    chosen, graph = story.outcome.chosen, story.understood.model.view
    here = Circumstances(
        graph, story.planned.plan, chosen.candidate, chosen.runs_in, instruction_set(), story.costs
    )
    found = find_slower(here)
    if not found and story.costs is None:
        return []
    blocks = [_by_kind(story.costs, graph)] if story.costs is not None else []
    blocks.append(causes([_shown(c) for c in found if c.ms is None or c.ms > 0]))
    innocent = [_shown(c) for c in found if c.ms is not None and c.ms <= 0]
    if innocent:
        blocks.append(folded("looked at, and INT8 is no slower there", causes(innocent)))
    slower = chosen.latency is not None and chosen.latency.ratio > 1.0
    title = "Why is INT8 slower here?" if slower else "Where the time goes"
    told = (
        "measured by the engine's own counters"
        if story.costs
        else f"{chosen.candidate.engine} tells no times"
    )
    lead = f"What makes INT8 slower on this engine and processor, with the way out; {told}."
    return [section(title, *blocks, lead=lead)]


def _by_kind(costs: LayerCosts, graph: GraphView) -> Html:
    kinds = {p.node: p.kind for p in place(graph)}
    sums: dict[str, list[float]] = {}
    for times, column in ((costs.float_ns, 0), (costs.served_ns, 1)):
        for node, ns in times.items():
            sums.setdefault(kinds.get(node, _OTHERS), [0.0, 0.0])[column] += ns / 1e6
    sums[_CONVERSIONS] = [costs.float_conversions_ns / 1e6, costs.served_conversions_ns / 1e6]
    rows = [
        PairRow(kind, floats, served, "", "plain" if served <= floats * 1.02 else "bad")
        for kind, (floats, served) in sorted(sums.items(), key=lambda entry: -max(entry[1]))
        if floats or served
    ]
    return pair_bars(
        rows,
        ("all float", "as built (red where slower)"),
        unit="ms",
        title="By kind of operator, one inference",
    )


def _shown(cause: Slower) -> Cause:
    return Cause(cause.what, cause.fix, _cost(cause.ms), _tone(cause.ms))


def _cost(ms: float | None) -> str:
    return "" if ms is None else f"{ms:+.3f} ms"


def _tone(ms: float | None) -> Tone:
    return "plain" if ms is None else ("bad" if ms > 0 else "good")
