"""Sections on groups of operators and on layer times: precision, reason, cost."""

from __future__ import annotations

from collections.abc import Sequence

from avq.builder.answers import time_answer
from avq.builder.report.summary import ReportData
from avq.builder.trials.int8_slowdowns import Context, Slowdown, find_slowdowns
from avq.builder.trials.layer_times import LayerCosts
from avq.engines.cpu import instruction_set
from avq.render import Cause, Html, PairRow, Tone, causes, folded, pair_bars, profile, section, table
from avq.toolbox import place
from avq.toolbox.assemble import macs_by_node
from avq.types import GraphView, GroupRow

_SHOWN_BARS = 12
_SHORT = 12
_LEGEND: tuple[tuple[str, Tone], ...] = (("INT8", "plain"), ("float", "warn"))


def groups(data: ReportData) -> list[Html]:
    """Return the table of the strategy's groups, else of layers; nothing for a float bundle."""
    plan = data.planned.plan
    if not plan.precisions:
        return []
    given = data.planned.groups
    rows = given or layer_rows(data)
    blocks = [*_profile(data, rows), *_bars(rows), _table(rows)]
    lead = f"Decided by {plan.owner} {plan.owner_version}; {_counted(rows)}."
    return [section("Precision of every group" if given else "Precision of every layer", *blocks, lead=lead)]


def layer_rows(data: ReportData) -> tuple[GroupRow, ...]:
    """Return one row per layer that could run in integers, or that is float for a reason."""
    plan, graph, costs = data.planned.plan, data.context.analysis.model.view, data.costs
    kinds = {p.node: p.kind for p in place(graph)}
    named = [node for node in graph.nodes if node.name in plan.precisions]
    return tuple(
        GroupRow(
            name=node.name,
            kind=kinds.get(node.name, node.op),
            precision=plan.precisions[node.name].precision,
            reason=plan.precisions[node.name].reason,
            float_ns=costs.float_ns.get(node.name) if costs else None,
            int8_ns=costs.served_ns.get(node.name) if costs else None,
        )
        for node in named
    )


def _counted(rows: Sequence[GroupRow]) -> str:
    int8 = sum(_is_int8(row) for row in rows)
    return f"{int8} in INT8, {len(rows) - int8} float"


def _is_int8(row: GroupRow) -> bool:
    return row.precision.startswith("int")


def _profile(data: ReportData, rows: Sequence[GroupRow]) -> list[Html]:
    """Draw sensitivity over the network where it was measured, else multiply-adds."""
    if len(rows) < 2:
        return []
    measured = [row.sensitivity for row in rows]
    if any(measured):
        values = [value or 0.0 for value in measured]
        title = "Sensitivity from input to outputs: loss of each group alone in INT8"
    else:
        macs = macs_by_node(data.context.analysis.model.view)
        values = [float(macs.get(row.name, 0)) for row in rows]
        title = "Multiply-adds from input to outputs"
    return [profile(values, ["plain" if _is_int8(r) else "warn" for r in rows], title=title, legend=_LEGEND)]


def _bars(rows: Sequence[GroupRow]) -> list[Html]:
    timed = [r for r in rows if r.float_ns and r.int8_ns]
    if not timed:
        return []
    most = sorted(timed, key=lambda r: -max(r.float_ns or 0, r.int8_ns or 0))[:_SHOWN_BARS]
    bars = [
        PairRow(
            r.name,
            (r.float_ns or 0) / 1e3,
            (r.int8_ns or 0) / 1e3,
            "INT8" if _is_int8(r) else "float",
            "plain" if (r.int8_ns or 0) <= (r.float_ns or 0) else "bad",
        )
        for r in most
    ]
    title = f"The {len(bars)} slowest, by the engine's profiler"
    return [pair_bars(bars, ("float", "INT8 (red where it is slower)"), unit="\u00b5s", title=title)]


def _table(rows: Sequence[GroupRow]) -> Html:
    known = [row.row() for row in rows]
    empty = {key for key in known[0] if all(row[key] == "-" for row in known)} if known else set()
    alone = {"nodes"} if all(row.nodes == 1 for row in rows) else set()
    shown = [{k: v for k, v in row.items() if k not in empty | alone} for row in known]
    whole = table(shown)
    return whole if len(shown) <= _SHORT else folded(f"all {len(shown)}, in the order of the graph", whole)


_OTHERS, _CONVERSIONS = "everything else", "conversions the engine added"


def time_spent(data: ReportData) -> list[Html]:
    """Return time by kind of operator where the engine profiles, then every cause with its fix."""
    chosen, graph = data.outcome.chosen, data.context.analysis.model.view
    context = Context(
        graph, data.planned.plan, chosen.candidate, chosen.runs_in, instruction_set(), data.costs
    )
    slowdowns = find_slowdowns(context)
    if not slowdowns and data.costs is None:
        return []
    blocks = [_by_kind(data, data.costs, graph)] if data.costs is not None else []
    blocks.append(causes([_shown(c) for c in slowdowns if c.ms is None or c.ms > 0]))
    harmless = [_shown(c) for c in slowdowns if c.ms is not None and c.ms <= 0]
    if harmless:
        blocks.append(folded("checked, and INT8 is no slower there", causes(harmless)))
    title = "Why is INT8 slower here?" if _is_slower(data) else "Where the time goes"
    return [section(title, *blocks, lead=_basis(data))]


def _is_slower(data: ReportData) -> bool:
    """Whether the verdict found INT8 slower and the profile, where there is one, shows the same."""
    latency = data.outcome.chosen.latency
    if latency is None or time_answer(latency) != "no":
        return False
    return data.costs is None or data.costs.sums_ms[1] > data.costs.sums_ms[0]


def _basis(data: ReportData) -> str:
    """Say what is compared, and where the sums of the profile differ from the paired ratio."""
    chosen, latency = data.outcome.chosen, data.outcome.chosen.latency
    lead = "What makes INT8 slow on this engine and processor, each with its fix; "
    if data.costs is None:
        return f"{lead}{chosen.candidate.engine} does not profile layers."
    floats, served = data.costs.sums_ms
    lead += (
        f"by the engine's profiler: {floats:.2f} ms all float on {_own_float(data)}, {served:.2f} ms as built"
    )
    if latency is None or not floats:
        return f"{lead}."
    lead += f", {served / floats:.2f}x"
    if latency.float_engine != chosen.candidate.as_float.label:
        return f"{lead}. The verdict compares with {latency.float_engine}: {latency.ratio:.2f}x."
    if latency.ratio_low <= served / floats <= latency.ratio_high:
        return f"{lead}, as in the paired runs."
    return f"{lead}; the paired runs without a profiler, which decide, give {latency.ratio:.2f}x."


def _own_float(data: ReportData) -> str:
    candidate = data.outcome.chosen.candidate
    return f"{candidate.engine} {candidate.precision}"


def _by_kind(data: ReportData, costs: LayerCosts, graph: GraphView) -> Html:
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
        (f"all float, {_own_float(data)}", "as built (red where slower)"),
        unit="ms",
        title="By kind of operator, one inference",
    )


def _shown(cause: Slowdown) -> Cause:
    return Cause(cause.what, cause.fix, _cost(cause.ms), _tone(cause.ms))


def _cost(ms: float | None) -> str:
    return "" if ms is None else f"{ms:+.3f} ms"


def _tone(ms: float | None) -> Tone:
    return "plain" if ms is None else ("bad" if ms > 0 else "good")
