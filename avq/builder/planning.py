"""Ask the strategy for its plan, on a workbench that measures this model on this data and target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from avq.builder.calibrate.commands import Calibration
from avq.builder.encodings.complete import side_file_for_plan
from avq.builder.frontend.analyse import Understood
from avq.builder.probe_set import ProbeSet
from avq.builder.request import Request
from avq.builder.workbench import HostWorkbench
from avq.errors import PluginError, RequestError
from avq.plugins import PluginHost
from avq.progress import Reporter
from avq.types import Figure, Foreign, GroupRow, PlanScore, QuantizationPlan

Notes = tuple[tuple[str, tuple[Mapping[str, object], ...]], ...]


@dataclass(frozen=True)
class Planned:
    """The decision, and the tables the strategy showed on the way.

    Attributes:
        figures: charts the strategy wants in the report.
        groups: what it knows of every group of operators; empty when it does not tell.
        foreign: the quantization that the model or a file beside it brought along.
        error: the workbench's judgement of further plans, for a diagnosis.
        conclusions: the strategy's own sentences for the verdict.
    """

    plan: QuantizationPlan
    notes: Notes
    figures: tuple[Figure, ...] = ()
    error: Callable[[QuantizationPlan], PlanScore] | None = None
    conclusions: tuple[str, ...] = ()
    groups: tuple[GroupRow, ...] = ()
    foreign: Foreign | None = None


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

    keep_float = {**host.keep_float(view, request.recipe), **understood.keep_float}
    foreign = _foreign(request, understood, calibration, keep_float)
    workbench = HostWorkbench(
        request=request,
        understood=understood,
        probe_set=probe_set,
        keep_float=keep_float,
        report=report,
        _collect=calibration.collect,
        _moments=calibration.moments,
        foreign=foreign,
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
        foreign,
    )


def _foreign(
    request: Request, understood: Understood, calibration: Calibration, keep_float: Mapping[str, str]
) -> Foreign | None:
    """Quantization in the model's file, or in the file beside it that the option ``encodings`` names."""
    path = getattr(request.options, "encodings", None)
    if path is None:
        return understood.foreign
    if understood.foreign is not None:
        raise RequestError(
            "the model is quantized already, and --option encodings= names a second quantization",
            seen=f"{request.recipe.model} ({understood.foreign.dialect}) and {path}",
            fix="drop the option, or give the float model",
        )
    counted = request.recipe.data is not None or request.recipe.calibration is not None
    return side_file_for_plan(
        path,
        understood.model.view,
        keep_float,
        calibration.collect if counted else None,
        symmetric_only=request.recipe.target.startswith("tensorrt"),
    )
