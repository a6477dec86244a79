"""Cross-compile builds: engines are compiled here, times are measured later on the vehicle.

Accuracy is judged here, on the exact bytes that the target's parser reads, run by the unoptimised reference.
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
from avq.builder.holdout import LOW_SCORE_FLOOR, SCORE_FLOOR, HoldoutSet, ModelOutputs
from avq.builder.index_selection import sqnr_with_same_indices
from avq.builder.labelled import map_drop
from avq.builder.lint import lint_errors
from avq.builder.lower import lower
from avq.builder.request import Request
from avq.builder.trials.serving import Candidate, Trial
from avq.bundle import FP16_BASELINE
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
    """Engines of one model, one per architecture, and the FP16 model they are timed against on the target.

    Attributes:
        pending: the target cannot run here.
        parts: file name in the bundle -> content.
        rows: size and build time of each engine and of the FP16 engine of the same model.
        lint: errors of the target's parser; None where lint did not run.
        remarks: why an engine is larger than its FP16 baseline, and warnings of the builder.
    """

    pending: bool = False
    parts: Mapping[str, bytes] = field(default_factory=dict)
    rows: tuple[Mapping[str, object], ...] = ()
    remarks: tuple[str, ...] = ()
    lint: tuple[Finding, ...] | None = None


@dataclass
class CrossCompileTarget:
    """A target that cannot run here: emulated accuracy and modelled times in place of measured serving.

    Attributes:
        request: engines, threads and architectures.
        compiler: builds the engines.
        analysis: the float model with its head.
        holdout: held-out pictures with the float model's outputs.
    """

    request: Request
    compiler: CompilingEngine
    analysis: ModelAnalysis
    holdout: HoldoutSet
    _outputs: dict[str, ModelOutputs] = field(default_factory=dict)

    def with_fp16(self, plan: QuantizationPlan) -> QuantizationPlan:
        """Return ``plan`` with FP16 for the nodes that the target runs in float."""
        return to_fp16(self.analysis.model.view, plan, self._peaks)

    def model(self, plan: QuantizationPlan) -> bytes:
        """Return the bytes for the target's parser; ``plan`` from `with_fp16`."""
        return lower(self.analysis.model.proto, plan, ENCODING)

    def trial(self, plan: QuantizationPlan) -> Trial:
        """Return the accuracy of the final plan in the emulated engine; no time is measured.

        Raises:
            RefusedError: the model has no decoder, and FP16 changes its outputs.
        """
        outputs = self._run(plan)
        why = "not run here: judged on the bytes its parser gets, in the unoptimised reference"
        if self.holdout.decoder is None and plan.points:
            why = f"{why}; {self._compare_with_fp32(plan)}"
        return Trial(
            Candidate(self.compiler.name, ENCODING, "f16"),
            runs_in="int8+f16" if plan.points else "f16",
            deviation=None,
            sqnr_db=outputs.worst_sqnr_db,
            right=True,
            why=why,
        )

    def compile(self, plan: QuantizationPlan, report: Reporter) -> Compiled:
        """Compile the final plan and its FP16 baseline for every architecture of the recipe.

        A model with lint errors is not compiled: some builders end the process instead of raising.
        """
        architectures = self.compiler.chosen_architectures(self.request.recipe.gpu_arch)
        model, baseline = self.model(plan), self.model(self.with_fp16(self._empty_plan))
        errors = self._lint((model, baseline) if plan.points else (model,), architectures)
        if errors:
            parts = {FP16_BASELINE: baseline} if plan.points else {}
            return Compiled(True, parts, remarks=(_NOT_COMPILED,), lint=errors)
        built = []
        for name in report.track(architectures, "engines", len(architectures)):
            ours = self.compiler.compile(model, name)
            built.append((ours, self.compiler.compile(baseline, name) if plan.points else ours))
        parts = {engine_name(ours.architecture): ours.data for ours, _ in built}
        if parts:
            parts[ENGINES] = engines_part(self._keys(model, architectures))
        if plan.points:
            parts[FP16_BASELINE] = baseline
        return Compiled(
            True,
            parts,
            tuple(_row(ours, fp16, plan) for ours, fp16 in built),
            (*_larger(built, *self._weight_bytes(plan)), *_warnings([ours for ours, _ in built])),
            (),
        )

    def _lint(self, models: Sequence[bytes], architectures: Sequence[str]) -> tuple[Finding, ...]:
        """Return the lint errors of ``models``, each once."""
        target = self.request.recipe.target
        errors = [finding for model in models for finding in lint_errors(model, target, architectures)]
        return tuple(dict.fromkeys(errors))

    def _keys(self, model: bytes, architectures: Sequence[str]) -> dict[str, EngineKey]:
        status, digest = self.compiler.status(), hashlib.sha256(model).hexdigest()
        return {
            engine_name(name): EngineKey(
                model=digest, runtime=status.name, version=status.version, architecture=name
            )
            for name in architectures
        }

    # Measurements for the workbench, as Serving makes them.

    def serve(self, plans: Sequence[QuantizationPlan]) -> list[MeasuredPlan | None]:
        """Score plans in the emulated engine; the cost model's ratio to FP16 replaces a measured time."""
        times = self.latencies(plans)
        scores = [self._score(self.with_fp16(plan)) for plan in plans]
        label = f"{self.compiler.name}, {COST_MODEL}"
        return [
            MeasuredPlan(label, score, time)
            for score, time in zip(scores, times, strict=True)
            if time is not None
        ]  # fmt: skip

    def latencies(self, plans: Sequence[QuantizationPlan]) -> list[Latency | None]:
        """Return the cost model's ratios to FP16; the milliseconds are NaN."""
        view = self.analysis.model.view
        base = target_cost(view, self.with_fp16(self._empty_plan))
        ratios = [target_cost(view, self.with_fp16(plan)) / base for plan in plans]
        label = f"FP16, {COST_MODEL}"
        return [Latency(_UNKNOWN_MS, _UNKNOWN_MS, r, r, r, label) for r in ratios]

    def layer_times(self, plans: Sequence[QuantizationPlan]) -> None:
        """Return None: layer times need the GPU."""

    @cached_property
    def _empty_plan(self) -> QuantizationPlan:
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
        outputs = self._run(plan)
        score = self.holdout.score(outputs)
        if self._map_drop is None or outputs.detections is None:
            return score
        return replace(score, map_drop_percent=self._map_drop(outputs.detections))

    def _run(self, plan: QuantizationPlan) -> ModelOutputs:
        if plan.digest not in self._outputs:
            session = self._emulate(self.model(plan))
            try:
                floor = LOW_SCORE_FLOOR if self._map_drop is None else SCORE_FLOOR
                self._outputs[plan.digest] = self.holdout.run(session, floor=floor)
            finally:
                session.close()
        return self._outputs[plan.digest]

    def _compare_with_fp32(self, plan: QuantizationPlan) -> str:
        """Compare the model with its FP16 nodes in FP32: a trained quantization has one correct output."""
        fp32, fp16 = self.model(replace(plan, precisions={})), self.model(plan)
        pictures = [prepared.tensor for prepared in self.holdout.inputs]
        sqnr_db = sqnr_with_same_indices(fp32, fp16, self._emulate, pictures)
        worst = min(sqnr_db, key=sqnr_db.__getitem__)
        why = f"SQNR {sqnr_db[worst]:.1f} dB to the same model with FP32"
        if sqnr_db[worst] < _WRONG_DB:
            raise RefusedError(
                "the FP16 nodes change the outputs of the INT8 model",
                seen=f"{why}, at {worst}",
                fix="leave the nodes with large values in FP32: avq_keep_float, or report the model",
            )
        return f"FP16 nodes: {why}"

    def _emulate(self, model: bytes) -> Session:
        engine = EmulatedEngine(self.compiler, self.request.reference)
        return engine.open(model, SessionOptions(threads=self.request.probe_threads))

    def _weight_bytes(self, plan: QuantizationPlan) -> tuple[int, int]:
        """Return the bytes of the constants in the plan's model, and in FP16."""
        view = self.analysis.model.view
        integers = {p.edge.tensor for p in plan.points if view.is_constant(p.edge.tensor)}
        sizes = {name: array.size for name, array in view.constants.items() if array.dtype.kind == "f"}
        return sum(n * (1 if name in integers else 2) for name, n in sizes.items()), 2 * sum(sizes.values())


def _row(ours: CompiledEngine, fp16: CompiledEngine, plan: QuantizationPlan) -> dict[str, object]:
    row: dict[str, object] = {
        "architecture": ours.architecture,
        "engine kB": round(len(ours.data) / 1024),
        "build s": round(ours.seconds, 1),
    }
    if plan.points:
        row |= {
            "FP16 engine kB": round(len(fp16.data) / 1024),
            "FP16 build s": round(fp16.seconds, 1),
        }
    return {**row, "layers parsed": ours.layers}


def _larger(
    built: Sequence[tuple[CompiledEngine, CompiledEngine]], weights: int, baseline_weights: int
) -> list[str]:
    """Explain in one sentence the engines that are larger than their FP16 baselines."""
    larger = [(ours, fp16) for ours, fp16 in built if len(ours.data) > len(fp16.data)]
    if not larger:
        return []
    ours, fp16 = max(larger, key=lambda pair: len(pair[0].data))
    rest, baseline_rest = (
        (len(ours.data) - weights) // 1024,
        (len(fp16.data) - baseline_weights) // 1024,
    )
    return [
        f"larger than the FP16 engine for {', '.join(o.architecture for o, _ in larger)}: the weights shrink from "
        f"{baseline_weights // 1024} to {weights // 1024} kB, but kernels and tables grow from "
        f"{baseline_rest} to {rest} kB, "
        "since INT8 operators of every new shape bring compiled kernels of their own; this pays back from a few "
        "million weights on"
    ]


def _warnings(engines: Sequence[CompiledEngine]) -> list[str]:
    """Return the warnings of the builder, each once."""
    texts = dict.fromkeys(" ".join(text.split()) for engine in engines for text in engine.warnings)
    return [f"warning of the engine builder: {text}" for text in texts]
