"""Ask the strategy for its plan, on a workbench that measures this model on this data and target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from avq.build.calibrate.commands import Calibration
from avq.build.probe_set import ProbeSet
from avq.build.request import Request
from avq.build.understand.frontend import Understood
from avq.build.workbench import HostWorkbench
from avq.errors import PluginError
from avq.plugins import PluginHost
from avq.progress import Reporter
from avq.types import Figure, GroupRow, PlanScore, QuantizationPlan

Notes = tuple[tuple[str, tuple[Mapping[str, object], ...]], ...]


@dataclass(frozen=True)
class Planned:
    """The decision, and the tables the strategy showed on the way.

    Attributes:
        figures: charts the strategy wants in the report.
        groups: what it knows of every group of operators; empty when it does not tell.
        error: the workbench's judgement of further plans, for a diagnosis.
        conclusions: the strategy's own sentences for the verdict.
    """

    plan: QuantizationPlan
    notes: Notes
    figures: tuple[Figure, ...] = ()
    error: Callable[[QuantizationPlan], PlanScore] | None = None
    conclusions: tuple[str, ...] = ()
    groups: tuple[GroupRow, ...] = ()


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

    workbench = HostWorkbench(
        request=request,
        understood=understood,
        probe_set=probe_set,
        keep_float={**host.keep_float(view, request.recipe), **understood.keep_float},
        report=report,
        _collect=calibration.collect,
        _moments=calibration.moments,
        foreign=understood.foreign,
        _adjusted=calibration.adjusted,
    )
    plan = request.quantizer.plan(view, workbench, request.options)
    if plan.graph_digest != view.digest:
        raise PluginError(
            f"strategy '{request.quantizer.name}' returned a plan for another graph",
            seen=f"plan {plan.graph_digest[:12]}, graph {view.digest[:12]}",
            fix="a plan must carry graph.digest of the graph it was asked for",
        )
    notes = tuple((title, tuple(rows)) for title, rows in workbench.notes)
    return Planned(
        plan,
        notes,
        tuple(workbench.figures),
        workbench.error,
        tuple(workbench.conclusions),
        tuple(workbench.group_rows),
    )
