"""Ask the strategy for its plan, on a workbench that measures this model on this data and target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import onnx

from avq.builder.calibrate.calibration import Calibration
from avq.builder.cross_compile.target import CrossCompileTarget, cross_compile_target
from avq.builder.encodings.complete import side_file_for_plan
from avq.builder.frontend.analyse import ModelAnalysis
from avq.builder.gate import DEFAULT_LOST_PERCENT
from avq.builder.holdout import HoldoutSet, ModelOutputs
from avq.builder.labelled import map_drop
from avq.builder.lower import lower
from avq.builder.request import Request
from avq.builder.trials.serving import Serving
from avq.errors import PluginError, RequestError
from avq.hookspecs import CalibrationStats, EncodingsOptions, Engine
from avq.plugins import PluginHost
from avq.progress import Reporter
from avq.types import (
    AnyArray,
    Figure,
    GroupRow,
    ImportedQuantization,
    Latency,
    MeasuredPlan,
    MomentRequest,
    PlanScore,
    QuantizationPlan,
    SessionOptions,
    StatRequest,
)
from avq.types.frame import F64

# The workbench a strategy decides on: statistics, errors and times of this model, data and target.

Collect = Callable[[Sequence[str]], CalibrationStats]
Moments = Callable[[Sequence[MomentRequest]], Mapping[str, F64]]


@dataclass
class HostWorkbench:
    """The host's side of the Workbench protocol.

    Attributes:
        request: what was asked for, with the engines that may serve it.
        analysis: the folded float model with its head and preprocessing.
        holdout: held-out pictures with float answers.
        keep_float: nodes that stay float, with reasons.
        foreign: quantization that came with the model.
        conclusions: sentences that join the reasons of the verdict.
    """

    request: Request
    analysis: ModelAnalysis
    holdout: HoldoutSet
    keep_float: Mapping[str, str]
    report: Reporter
    _collect: Collect
    _moments: Moments
    _adjusted: Callable[[Mapping[str, AnyArray]], Calibration]
    foreign: ImportedQuantization | None = None
    notes: list[tuple[str, list[Mapping[str, object]]]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    group_rows: list[GroupRow] = field(default_factory=list)
    conclusions: list[str] = field(default_factory=list)
    _answers: dict[str, ModelOutputs] = field(default_factory=dict)

    @property
    def symmetric_only(self) -> bool:
        return self.request.recipe.target.startswith("tensorrt")

    @property
    def budget_ms(self) -> float | None:
        return self.request.recipe.budget_ms

    @property
    def max_drop(self) -> float | None:
        given = self.request.recipe.max_drop
        # Modelled times are not worth a risk at the gate's limit, and make no knee against measured losses.
        return DEFAULT_LOST_PERCENT / 2 if given is None and self.request.compiler is not None else given

    def collect(self, requests: Sequence[StatRequest]) -> CalibrationStats:
        return self._collect([request.tensor for request in requests])

    def moments(self, requests: Sequence[MomentRequest]) -> Mapping[str, F64]:
        return self._moments(requests)

    def adjusted(self, overrides: Mapping[str, AnyArray]) -> HostWorkbench:
        other = self._adjusted(overrides)
        return replace(self, _collect=other.collect, _moments=other.moments, _adjusted=other.adjusted)

    def error(self, plan: QuantizationPlan, *, pictures: int | None = None) -> PlanScore:
        few = self._few(pictures)
        if few is None:
            return self.holdout.score(self._reference_answers(plan))
        question = self._question(few, at_once=self.request.probe_threads)
        return question.holdout.score(question.answer(plan))

    def errors(
        self, plans: Sequence[QuantizationPlan], *, pictures: int | None = None
    ) -> Sequence[PlanScore]:
        pool, few = self.request.pool, self._few(pictures)
        if not pool.is_parallel:
            return [self.error(plan, pictures=pictures) for plan in plans]
        question = self._question(few, at_once=1)
        asked = {plan.digest: plan for plan in plans if few is not None or plan.digest not in self._answers}
        told = self.report.track(pool.map(question.answer, asked.values()), "plans", len(asked))
        answers = dict(zip(asked, told, strict=True))
        if few is None:
            self._answers |= answers
            answers = self._answers
        return [question.holdout.score(answers[plan.digest]) for plan in plans]

    def latency(self, plan: QuantizationPlan) -> Latency | None:
        served = self._serving.serve([plan])[0]
        return None if served is None else served.latency

    def serve(self, plans: Sequence[QuantizationPlan]) -> Sequence[MeasuredPlan | None]:
        return self._serving.serve(plans)

    def latencies(self, plans: Sequence[QuantizationPlan]) -> Sequence[Latency | None]:
        return self._serving.latencies(plans)

    def layer_times(self, plans: Sequence[QuantizationPlan]) -> Sequence[Mapping[str, int]] | None:
        return self._serving.layer_times(plans)

    def note(self, title: str, rows: Sequence[Mapping[str, object]]) -> None:
        self.notes.append((title, list(rows)))
        self.report.table(title, rows)

    def plot(self, figure: Figure) -> None:
        self.figures.append(figure)

    def groups(self, rows: Sequence[GroupRow]) -> None:
        self.group_rows = list(rows)
        self.report.table("Every group", [row.row() for row in rows])

    def conclude(self, reason: str) -> None:
        self.conclusions.append(reason)

    @cached_property
    def _serving(self) -> Serving | CrossCompileTarget:
        pending = cross_compile_target(self.request, self.analysis, self.holdout)
        if pending is not None:
            return pending
        model = self.analysis.model
        by_labels = map_drop(self.request, self.analysis.class_names, self.holdout)
        return Serving(
            self.request, model.proto, model.view, self.holdout, self._reference_answers, by_labels
        )

    def _reference_answers(self, plan: QuantizationPlan) -> ModelOutputs:
        """What the plan means, on every picture; asked once."""
        if plan.digest not in self._answers:
            question = self._question(None, at_once=self.request.probe_threads)
            self._answers[plan.digest] = question.answer(plan)
        return self._answers[plan.digest]

    def _question(self, pictures: int | None, *, at_once: int) -> ReferenceRun:
        """None: all pictures, exactly; else the first so many, to rank plans."""
        model = self.analysis.model
        return ReferenceRun(
            model.proto,
            self.request.reference,
            self.holdout if pictures is None else self.holdout.first(pictures),
            model.view.inputs[0].name,
            exactly=pictures is None,
            at_once=at_once,
        )

    def _few(self, pictures: int | None) -> int | None:
        """How many pictures are asked for, where they are not all."""
        return None if pictures is None or pictures >= len(self.holdout.items) else max(pictures, 1)


@dataclass(frozen=True)
class ReferenceRun:
    """How a plan answers pictures in the reference; can be sent to a worker.

    Attributes:
        picture: name of the float model's input.
        exactly: as the plan is meant, without optimisations; else quickly.
        at_once: threads, each with a picture of its own.
    """

    float_model: onnx.ModelProto
    reference: Engine
    holdout: HoldoutSet
    picture: str
    exactly: bool = True
    at_once: int = 1

    def answer(self, plan: QuantizationPlan) -> ModelOutputs:
        model = lower(self.float_model, plan, reference_encoding(plan))
        options = SessionOptions(threads=1, optimise=not self.exactly, integers=self.exactly)
        session = self.reference.open(model, options)
        try:
            return self.holdout.run(session, picture=self.picture, at_once=self.at_once)
        finally:
            session.close()


def reference_encoding(plan: QuantizationPlan) -> str:
    """The encoding that defines the plan's numbers; the others are compared with it."""
    return "s8" if plan.symmetric else "asymmetric"


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
    foreign: ImportedQuantization | None = None


def make_plan(
    request: Request,
    analysis: ModelAnalysis,
    calibration: Calibration,
    holdout: HoldoutSet,
    host: PluginHost,
    report: Reporter,
) -> Planned:
    """The plan of ``request.quantizer``; the empty plan for the float strategy.

    Raises PluginError when the strategy returns a plan for another graph.
    """
    view = analysis.model.view
    if request.quantizer is None:
        return Planned(QuantizationPlan(graph_digest=view.digest, owner="avq", owner_version="float"), ())

    keep_float = {**host.keep_float(view, request.recipe), **analysis.keep_float}
    foreign = _foreign(request, analysis, calibration, keep_float)
    workbench = HostWorkbench(
        request=request,
        analysis=analysis,
        holdout=holdout,
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
    request: Request, analysis: ModelAnalysis, calibration: Calibration, keep_float: Mapping[str, str]
) -> ImportedQuantization | None:
    """Quantization in the model's file, or in the file beside it that the option ``encodings`` names."""
    path = request.options.encodings if isinstance(request.options, EncodingsOptions) else None
    if path is None:
        return analysis.foreign
    if analysis.foreign is not None:
        raise RequestError(
            "the model is quantized already, and --option encodings= names a second quantization",
            seen=f"{request.recipe.model} ({analysis.foreign.dialect}) and {path}",
            fix="drop the option, or give the float model",
        )
    counted = request.recipe.data is not None or request.recipe.calibration is not None
    return side_file_for_plan(
        path,
        analysis.model.view,
        keep_float,
        calibration.collect if counted else None,
        symmetric_only=request.recipe.target.startswith("tensorrt"),
    )
