"""Ask the strategy for its plan, on a workbench that measures this model on this data and target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from avq.build.bench import Bench
from avq.build.calibration import Calibration
from avq.build.candidates import candidates_for, fastest_first
from avq.build.frontend import Understood
from avq.build.probe_set import ProbeSet
from avq.build.request import Request
from avq.build.workbench import HostWorkbench
from avq.errors import PluginError
from avq.plugins import PluginHost
from avq.progress import Reporter, Silent
from avq.types import Latency, PlanScore, QuantizationPlan

Notes = tuple[tuple[str, tuple[Mapping[str, object], ...]], ...]


@dataclass(frozen=True)
class Planned:
    """The decision, and the tables the strategy showed on the way.

    Attributes:
        error: the workbench's judgement of further plans, for a diagnosis.
    """

    plan: QuantizationPlan
    notes: Notes
    error: Callable[[QuantizationPlan], PlanScore] | None = None


def make_plan(
    request: Request,
    understood: Understood,
    calibration: Calibration,
    probe_set: ProbeSet,
    host: PluginHost,
    report: Reporter,
) -> Planned:
    """The plan of ``request.quantizer``; the empty plan for the float strategy.

    Raises PluginError when the strategy returns a plan for another graph.
    """
    view = understood.model.view
    if request.quantizer is None:
        return Planned(QuantizationPlan(graph_digest=view.digest, owner="avq", owner_version="float"), ())

    def time_on_target(plan: QuantizationPlan) -> Latency | None:
        with Bench(request, understood.model.proto, plan, probe_set) as bench:
            trials = bench.try_all(candidates_for(request, plan), Silent())
        return fastest_first(trials, plan, request)[0].latency

    workbench = HostWorkbench(
        understood=understood,
        probe_set=probe_set,
        reference=request.reference,
        keep_float={**host.keep_float(view, request.recipe), **understood.keep_float},
        symmetric_only=request.recipe.target.startswith("tensorrt"),
        threads=request.probe_threads,
        report=report,
        _collect=calibration.collect,
        _moments=calibration.moments,
        _time=time_on_target,
    )
    plan = request.quantizer.plan(view, workbench, request.options)
    if plan.graph_digest != view.digest:
        raise PluginError(
            f"strategy '{request.quantizer.name}' returned a plan for another graph",
            seen=f"plan {plan.graph_digest[:12]}, graph {view.digest[:12]}",
            fix="a plan must carry graph.digest of the graph it was asked for",
        )
    notes = tuple((title, tuple(rows)) for title, rows in workbench.notes)
    return Planned(plan, notes, workbench.error)
