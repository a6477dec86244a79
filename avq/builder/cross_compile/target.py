"""Builds for a GPU that this machine lacks: engines are compiled, times come later, on the vehicle.

What is judged here is accuracy, on the exact bytes the target's parser is given, run by the unoptimised reference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from avq.builder.cross_compile.cost_model import NAME as COST_MODEL
from avq.builder.cross_compile.cost_model import target_cost
from avq.builder.cross_compile.fp16 import activation_peaks, to_fp16
from avq.builder.emulated_target import EmulatedEngine
from avq.builder.frontend.analyse import ModelAnalysis
from avq.builder.holdout import LOOK_FLOOR, SCORE_FLOOR, HoldoutSet, ModelOutputs
from avq.builder.index_selection import sqnr_with_same_choices
from avq.builder.labelled import map_drop
from avq.builder.lint import lint_errors
from avq.builder.lower import lower
from avq.builder.request import Request
from avq.builder.trials.bench import Candidate, Trial
from avq.bundle import TWIN
from avq.bundle.engines import ENGINES, EngineKey, engine_name, engines_part
from avq.errors import RefusedError
from avq.hookspecs import CompilingEngine, Session
from avq.progress import Reporter
from avq.types import (
    CompiledEngine,
    Detections,
    Finding,
    Latency,
    MeasuredPlan,
    PlanScore,
    QuantizationPlan,
    SessionOptions,
)

ENCODING = "s8"
_UNKNOWN_MS = float("nan")
#: Rounding flips of a coarse trained grid leave 20 dB and more; wrong numbers 14 or less.
_WRONG_DB = 15.0
_NOT_COMPILED = "nothing was compiled: avq lint refuses the model"


@dataclass(frozen=True)
class Compiled:
    """What goes to the target: engines of one model, one per architecture, and what to time them against there.

    Attributes:
        pending: the target cannot run here.
        parts: file name in the bundle -> content.
        rows: size and build time of each beside the FP16 engine of the same model.
        lint: what the target would reject in the model; None where nothing was looked at.
        remarks: why an engine is larger than its FP16 twin, and what the builder warned of.
    """

    pending: bool = False
    parts: Mapping[str, bytes] = field(default_factory=dict)
    rows: tuple[Mapping[str, object], ...] = ()
    remarks: tuple[str, ...] = ()
    lint: tuple[Finding, ...] | None = None


@dataclass
class CrossCompileTarget:
    """Everything a build asks of a target that cannot run here; stands where measured serving stands."""

    request: Request
    compiler: CompilingEngine
    analysis: ModelAnalysis
    holdout: HoldoutSet
    _answers: dict[str, ModelOutputs] = field(default_factory=dict)

    def finished(self, plan: QuantizationPlan) -> QuantizationPlan:
        """``plan`` with the FP16 that the target runs around INT8."""
        return to_fp16(self.analysis.model.view, plan, self._peaks)

    def model(self, plan: QuantizationPlan) -> bytes:
        """The bytes for the target's parser; ``plan`` as `finished` leaves it."""
        return lower(self.analysis.model.proto, plan, ENCODING)

    def trial(self, plan: QuantizationPlan) -> Trial:
        """What became of the finished plan: numbers of the rehearsal, no time.

        Raises RefusedError where no boxes are judged and FP16 beside INT8 gives other answers than FP32 there.
        """
        answers = self._answer(plan)
        said = "not run here: judged on the bytes its parser gets, in the unoptimised reference"
        if self.holdout.decoder is None and plan.points:
            said = f"{said}; {self._beside_fp32(plan)}"
        return Trial(
            Candidate(self.compiler.name, ENCODING, "f16"),
            runs_in="int8+f16" if plan.points else "f16",
            deviation=None,
            sqnr_db=answers.worst_sqnr_db,
            right=True,
            why=said,
        )

    def compile(self, plan: QuantizationPlan, report: Reporter) -> Compiled:
        """Engines of the finished plan for every architecture asked for, beside FP16 ones; the FP16 model itself.

        A model that lint refuses reaches no builder: some of those end the process instead of saying no.
        """
        architectures = self.compiler.chosen_architectures(self.request.recipe.gpu_arch)
        model, twin = self.model(plan), self.model(self.finished(self._nothing))
        found = self._lint((model, twin) if plan.points else (model,), architectures)
        if found:
            kept = {TWIN: twin} if plan.points else {}
            return Compiled(True, kept, remarks=(_NOT_COMPILED,), lint=found)
        built = []
        for name in report.track(architectures, "engines", len(architectures)):
            ours = self.compiler.compile(model, name)
            built.append((ours, self.compiler.compile(twin, name) if plan.points else ours))
        parts = {engine_name(ours.architecture): ours.data for ours, _ in built}
        if parts:
            parts[ENGINES] = engines_part(self._keys(model, architectures))
        if plan.points:
            parts[TWIN] = twin
        return Compiled(
            True,
            parts,
            tuple(_row(ours, half, plan) for ours, half in built),
            (*_larger(built, *self._weight_bytes(plan)), *_said([ours for ours, _ in built])),
            (),
        )

    def _lint(self, models: Sequence[bytes], architectures: Sequence[str]) -> tuple[Finding, ...]:
        """What any of ``models`` is refused for, once each."""
        target = self.request.recipe.target
        found = [finding for model in models for finding in lint_errors(model, target, architectures)]
        return tuple(dict.fromkeys(found))

    def _keys(self, model: bytes, architectures: Sequence[str]) -> dict[str, EngineKey]:
        status, digest = self.compiler.status(), hashlib.sha256(model).hexdigest()
        return {
            engine_name(name): EngineKey(
                model=digest, runtime=status.name, version=status.version, architecture=name
            )
            for name in architectures
        }

    # What a workbench asks of whatever serves plans

    def serve(self, plans: Sequence[QuantizationPlan]) -> list[MeasuredPlan | None]:
        """Scores of the rehearsal, with the cost model's ratio to FP16 where a measured one would stand."""
        times = self.latencies(plans)
        scores = [self._score(self.finished(plan)) for plan in plans]
        label = f"{self.compiler.name}, {COST_MODEL}"
        return [
            MeasuredPlan(label, score, time)
            for score, time in zip(scores, times, strict=True)
            if time is not None
        ]  # fmt: skip

    def latencies(self, plans: Sequence[QuantizationPlan]) -> list[Latency | None]:
        view = self.analysis.model.view
        base = target_cost(view, self.finished(self._nothing))
        ratios = [target_cost(view, self.finished(plan)) / base for plan in plans]
        label = f"FP16, {COST_MODEL}"
        return [Latency(_UNKNOWN_MS, _UNKNOWN_MS, r, r, r, label) for r in ratios]

    def layer_times(self, plans: Sequence[QuantizationPlan]) -> None:
        """Nothing tells them without the GPU."""

    @cached_property
    def _nothing(self) -> QuantizationPlan:
        return QuantizationPlan(graph_digest=self.analysis.model.view.digest)

    @cached_property
    def _peaks(self) -> dict[str, float]:
        model = self.analysis.model
        tensors = [prepared.tensor for prepared in self.holdout.inputs]
        return activation_peaks(model.proto, model.view, tensors, self.request.reference)

    @cached_property
    def _map_drop(self) -> Callable[[Sequence[Detections]], float] | None:
        return map_drop(self.request, self.analysis.class_names, self.holdout)

    def _score(self, plan: QuantizationPlan) -> PlanScore:
        answers = self._answer(plan)
        score = self.holdout.score(answers)
        if self._map_drop is None or answers.detections is None:
            return score
        return replace(score, map_drop_percent=self._map_drop(answers.detections))

    def _answer(self, plan: QuantizationPlan) -> ModelOutputs:
        if plan.digest not in self._answers:
            session = self._rehearsed(plan)
            try:
                floor = LOOK_FLOOR if self._map_drop is None else SCORE_FLOOR
                self._answers[plan.digest] = self.holdout.run(session, floor=floor)
            finally:
                session.close()
        return self._answers[plan.digest]

    def _beside_fp32(self, plan: QuantizationPlan) -> str:
        """The file with its FP16 against the same without: a trained quantization has one right answer."""
        single, sided = self.model(replace(plan, precisions={})), self.model(plan)
        pictures = [prepared.tensor for prepared in self.holdout.inputs]
        sqnr_db = sqnr_with_same_choices(single, sided, self._opened, pictures)
        worst = min(sqnr_db, key=sqnr_db.__getitem__)
        why = f"SQNR {sqnr_db[worst]:.1f} dB to FP32 beside it"
        if sqnr_db[worst] < _WRONG_DB:
            raise RefusedError(
                "FP16 beside INT8 changes what the model answers",
                seen=f"{why}, at {worst}",
                fix="leave the nodes with large values in FP32: avq_keep_float, or report the model",
            )
        return f"FP16 beside INT8: {why}"

    def _rehearsed(self, plan: QuantizationPlan) -> Session:
        return self._opened(self.model(plan))

    def _opened(self, model: bytes) -> Session:
        rehearsal = EmulatedEngine(self.compiler, self.request.reference)
        return rehearsal.open(model, SessionOptions(threads=self.request.probe_threads))

    def _weight_bytes(self, plan: QuantizationPlan) -> tuple[int, int]:
        """Bytes of the constants in the plan's model, and in FP16."""
        view = self.analysis.model.view
        integers = {p.edge.tensor for p in plan.points if view.is_constant(p.edge.tensor)}
        sizes = {name: array.size for name, array in view.constants.items() if array.dtype.kind == "f"}
        return sum(n * (1 if name in integers else 2) for name, n in sizes.items()), 2 * sum(sizes.values())


def _row(ours: CompiledEngine, half: CompiledEngine, plan: QuantizationPlan) -> dict[str, object]:
    row: dict[str, object] = {
        "architecture": ours.architecture,
        "engine kB": round(len(ours.data) / 1024),
        "build s": round(ours.seconds, 1),
    }
    if plan.points:
        row |= {"FP16 engine kB": round(len(half.data) / 1024), "FP16 build s": round(half.seconds, 1)}
    return {**row, "layers parsed": ours.layers}


def _larger(
    built: Sequence[tuple[CompiledEngine, CompiledEngine]], weights: int, half_weights: int
) -> list[str]:
    """One sentence on the engines that outgrew their FP16 twins, with where the bytes are."""
    larger = [(ours, half) for ours, half in built if len(ours.data) > len(half.data)]
    if not larger:
        return []
    ours, half = max(larger, key=lambda pair: len(pair[0].data))
    rest, half_rest = (len(ours.data) - weights) // 1024, (len(half.data) - half_weights) // 1024
    return [
        f"larger than the FP16 engine for {', '.join(o.architecture for o, _ in larger)}: the weights shrink from "
        f"{half_weights // 1024} to {weights // 1024} kB, but kernels and tables grow from {half_rest} to {rest} kB, "
        "since INT8 operators of every new shape bring compiled kernels of their own; this pays back from a few "
        "million weights on"
    ]


def _said(engines: Sequence[CompiledEngine]) -> list[str]:
    """What the builder remarked, each sentence once."""
    texts = dict.fromkeys(" ".join(text.split()) for engine in engines for text in engine.warnings)
    return [f"the builder says: {text}" for text in texts]


def cross_compile_target(
    request: Request, analysis: ModelAnalysis, holdout: HoldoutSet
) -> CrossCompileTarget | None:
    """None where the target runs on this machine."""
    if request.compiler is None:
        return None
    return CrossCompileTarget(request, request.compiler, analysis, holdout)
