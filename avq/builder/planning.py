"""Plan with the strategy, on a workbench that measures this model on this data and target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import onnx

from avq.builder.calibrate.calibration import Calibration
from avq.builder.context import BuildContext
from avq.builder.cross_compile.dla import with_ranges
from avq.builder.cross_compile.target import CrossCompileTarget
from avq.builder.encodings.complete import completed, side_file_for_plan
from avq.builder.gate import DEFAULT_LOST_PERCENT
from avq.builder.holdout import HoldoutSet, ModelOutputs
from avq.builder.labelled import map_drop
from avq.builder.lift import RUN_TIME_DIALECT
from avq.builder.lift.findings import refusal
from avq.builder.lower import lower
from avq.builder.trials.serving import Serving
from avq.errors import PluginError, RequestError
from avq.hookspecs import CalibrationStats, EncodingsOptions, Engine
from avq.types import (
    F64,
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


@dataclass
class HostWorkbench:
    """The host's side of the Workbench protocol.

    Attributes:
        context: the build.
        calibration: statistics of the float network, or of one with adjusted constants.
        keep_float: nodes that stay float, with reasons.
        foreign: quantization that came with the model.
        conclusions: sentences for the reasons of the verdict.
        scored: digests of the plans whose losses the strategy has seen.
    """

    context: BuildContext
    calibration: Calibration
    keep_float: Mapping[str, str]
    foreign: ImportedQuantization | None = None
    notes: list[tuple[str, list[Mapping[str, object]]]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    group_rows: list[GroupRow] = field(default_factory=list)
    conclusions: list[str] = field(default_factory=list)
    scored: set[str] = field(default_factory=set)
    _outputs: dict[str, ModelOutputs] = field(default_factory=dict)

    @property
    def symmetric_only(self) -> bool:
        return self.context.recipe.target.startswith("tensorrt")

    @property
    def budget_ms(self) -> float | None:
        return self.context.recipe.budget_ms

    @property
    def max_drop(self) -> float | None:
        given = self.context.recipe.max_drop
        # Modelled times do not justify a loss at the gate's limit, and have no knee against measured losses.
        return DEFAULT_LOST_PERCENT / 2 if given is None and self.context.target is not None else given

    def collect(self, requests: Sequence[StatRequest]) -> CalibrationStats:
        return self.calibration.collect([request.tensor for request in requests])

    def moments(self, requests: Sequence[MomentRequest]) -> Mapping[str, F64]:
        return self.calibration.moments(requests)

    def adjusted(self, overrides: Mapping[str, AnyArray]) -> HostWorkbench:
        return replace(self, calibration=self.calibration.adjusted(overrides))

    def error(self, plan: QuantizationPlan, *, pictures: int | None = None) -> PlanScore:
        few = self._few(pictures)
        self.scored.add(plan.digest)
        if few is None:
            return self.context.holdout.score(self._reference_outputs(plan))
        reference = self._reference_run(few, threads=self.context.request.probe_threads)
        return reference.holdout.score(reference.run(plan))

    def errors(
        self, plans: Sequence[QuantizationPlan], *, pictures: int | None = None
    ) -> Sequence[PlanScore]:
        pool, few = self.context.request.pool, self._few(pictures)
        if not pool.is_parallel:
            return [self.error(plan, pictures=pictures) for plan in plans]
        self.scored.update(plan.digest for plan in plans)
        reference = self._reference_run(few, threads=1)
        missing = {plan.digest: plan for plan in plans if few is not None or plan.digest not in self._outputs}
        results = self.context.reporter.track(
            pool.map(reference.run, missing.values()), "plans", len(missing)
        )
        outputs = dict(zip(missing, results, strict=True))
        if few is None:
            self._outputs |= outputs
            outputs = self._outputs
        return [reference.holdout.score(outputs[plan.digest]) for plan in plans]

    def latency(self, plan: QuantizationPlan) -> Latency | None:
        served = self._serving.serve([plan])[0]
        return None if served is None else served.latency

    def serve(self, plans: Sequence[QuantizationPlan]) -> Sequence[MeasuredPlan | None]:
        self.scored.update(plan.digest for plan in plans)
        return self._serving.serve(plans)

    def latencies(self, plans: Sequence[QuantizationPlan]) -> Sequence[Latency | None]:
        return self._serving.latencies(plans)

    def layer_times(self, plans: Sequence[QuantizationPlan]) -> Sequence[Mapping[str, int]] | None:
        return self._serving.layer_times(plans)

    def note(self, title: str, rows: Sequence[Mapping[str, object]]) -> None:
        self.notes.append((title, list(rows)))
        self.context.reporter.table(title, rows)

    def plot(self, figure: Figure) -> None:
        self.figures.append(figure)

    def groups(self, rows: Sequence[GroupRow]) -> None:
        self.group_rows = list(rows)
        self.context.reporter.table("Every group", [row.row() for row in rows])

    def conclude(self, reason: str) -> None:
        self.conclusions.append(reason)

    @cached_property
    def _serving(self) -> Serving | CrossCompileTarget:
        context = self.context
        if context.target is not None:
            return context.target
        drop = map_drop(context.request, context.analysis.class_names, context.holdout)
        return Serving(
            context.request, context.analysis.model, context.holdout, self._reference_outputs, drop
        )

    def _reference_outputs(self, plan: QuantizationPlan) -> ModelOutputs:
        """Run a plan once in the unoptimised reference, on every picture."""
        if plan.digest not in self._outputs:
            run = self._reference_run(None, threads=self.context.request.probe_threads)
            self._outputs[plan.digest] = run.run(plan)
        return self._outputs[plan.digest]

    def _reference_run(self, pictures: int | None, *, threads: int) -> ReferenceRun:
        """None: all pictures, exactly; else the first ``pictures``, faster, to rank plans."""
        model, holdout = self.context.analysis.model, self.context.holdout
        return ReferenceRun(
            model.proto,
            self.context.request.reference,
            holdout if pictures is None else holdout.first(pictures),
            model.view.inputs[0].name,
            exactly=pictures is None,
            threads=threads,
        )

    def _few(self, pictures: int | None) -> int | None:
        """Return the number of pictures where it is not all of them."""
        every = len(self.context.holdout.items)
        return None if pictures is None or pictures >= every else max(pictures, 1)


@dataclass(frozen=True)
class ReferenceRun:
    """Runs plans over pictures in the reference engine; can be sent to a worker process.

    Attributes:
        picture: name of the float model's input.
        exactly: without optimisations, as the plan defines its numbers; else faster.
        threads: each runs a picture.
    """

    float_model: onnx.ModelProto
    reference: Engine
    holdout: HoldoutSet
    picture: str
    exactly: bool = True
    threads: int = 1

    def run(self, plan: QuantizationPlan) -> ModelOutputs:
        """Lower ``plan`` and return its outputs on every picture."""
        model = lower(self.float_model, plan, reference_encoding(plan))
        options = SessionOptions(threads=1, optimise=not self.exactly, integers=self.exactly)
        session = self.reference.open(model, options)
        try:
            return self.holdout.run(session, picture=self.picture, threads=self.threads)
        finally:
            session.close()


def reference_encoding(plan: QuantizationPlan) -> str:
    """Return the encoding that defines the plan's numbers; the others are compared with it."""
    return "s8" if plan.symmetric else "asymmetric"


Notes = tuple[tuple[str, tuple[Mapping[str, object], ...]], ...]


@dataclass(frozen=True)
class Planned:
    """The plan of a strategy, and everything it shows in the report.

    Attributes:
        notes: tables, each with its title.
        figures: charts.
        error: the workbench's score of further plans, for a diagnosis.
        conclusions: the strategy's sentences for the verdict.
        groups: every group of operators; empty when the strategy has none.
        foreign: the imported quantization.
        scored: number of plans whose losses the strategy compared.
    """

    plan: QuantizationPlan
    notes: Notes
    figures: tuple[Figure, ...] = ()
    error: Callable[[QuantizationPlan], PlanScore] | None = None
    conclusions: tuple[str, ...] = ()
    groups: tuple[GroupRow, ...] = ()
    foreign: ImportedQuantization | None = None
    scored: int = 0


def make_plan(context: BuildContext) -> Planned:
    """Run the strategy's ``plan`` on a workbench; the float strategy has the empty plan.

    Raises PluginError when the strategy returns a plan for another graph.
    """
    request, view = context.request, context.analysis.model.view
    if request.quantizer is None:
        return Planned(QuantizationPlan(graph_digest=view.digest, owner="avq", owner_version="float"), ())

    keep_float = {**context.host.keep_float(view, request.recipe), **context.analysis.keep_float}
    foreign = _imported(context, keep_float)
    workbench = HostWorkbench(context, context.calibration, keep_float, foreign)
    plan = request.quantizer.plan(view, workbench, request.options)
    if plan.graph_digest != view.digest:
        raise PluginError(
            f"strategy '{request.quantizer.name}' returned a plan for another graph",
            seen=f"plan {plan.graph_digest[:12]}, graph {view.digest[:12]}",
            fix="set graph_digest of the plan to graph.digest",
        )
    return Planned(
        plan,
        notes=tuple((title, tuple(rows)) for title, rows in workbench.notes),
        figures=tuple(workbench.figures),
        error=workbench.error,
        conclusions=tuple(workbench.conclusions),
        groups=tuple(workbench.group_rows),
        foreign=foreign,
        scored=len(workbench.scored),
    )


def finish_plan(planned: Planned, context: BuildContext) -> Planned:
    """Add what the target needs: FP16 precisions for a cross-compile target, ranges for DLA.

    The result is final: trials, staging, diagnosis and report all read this plan.
    """
    plan = planned.plan
    if context.target is not None:
        plan = context.target.with_fp16(plan)
    return replace(planned, plan=with_ranges(plan, context))


def _counting(context: BuildContext) -> Callable[[Sequence[str]], CalibrationStats]:
    """Count ranges that an import lacks, on pictures that calibrate or from a given file."""

    def collect(tensors: Sequence[str]) -> CalibrationStats:
        if context.recipe.calibration is None:
            context.pictures.require_distinct()
        return context.calibration.collect(tensors)

    return collect


def _imported(context: BuildContext, keep_float: Mapping[str, str]) -> ImportedQuantization | None:
    """Return the quantization in the model's file, or in the file that the option ``encodings`` names."""
    request, foreign = context.request, context.analysis.foreign
    path = request.options.encodings if isinstance(request.options, EncodingsOptions) else None
    counted = request.recipe.data is not None or request.recipe.calibration is not None
    collect = _counting(context) if counted else None
    symmetric_only = request.recipe.target.startswith("tensorrt")
    if path is None:
        if foreign is None or foreign.dialect != RUN_TIME_DIALECT:
            return foreign
        if collect is None:
            raise refusal("AVQ-Q33", f"{len(foreign.points)} weights with grids, no activation with a scale")
        view = context.analysis.model.view
        return completed(foreign, view, keep_float, collect, symmetric_only=symmetric_only)
    if foreign is not None:
        raise RequestError(
            "the model is quantized already, and --option encodings= names a second quantization",
            seen=f"{request.recipe.model} ({foreign.dialect}) and {path}",
            fix="drop the option, or give the float model",
        )
    view = context.analysis.model.view
    return side_file_for_plan(path, view, keep_float, collect, symmetric_only=symmetric_only)
