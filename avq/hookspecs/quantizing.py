"""Quantization strategies, and the workbench that the host gives them while they plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from avq.types import (
    F64,
    AnyArray,
    Calibrator,
    Figure,
    GraphView,
    GroupRow,
    ImportedQuantization,
    Latency,
    MeasuredPlan,
    MomentRequest,
    PlanScore,
    QuantizationPlan,
    Range,
    StatRequest,
)

if TYPE_CHECKING:
    from pydantic import BaseModel


class CalibrationStats(Protocol):
    """Histograms of activation tensors; every threshold is computed from them, without inference."""

    @property
    def tensors(self) -> Sequence[str]:
        """Names of the tensors that were collected."""
        ...

    def range(
        self,
        tensor: str,
        method: Calibrator,
        *,
        bits: int = 8,
        symmetric: bool = True,
        percentile: float = 99.99,
    ) -> Range:
        """Compute the clipping range of one tensor, in units of that tensor.

        Args:
            tensor: a collected tensor.
            method: the calibration method.
            bits: of the grid.
            symmetric: True gives (-t, t); False cuts that range to the exact minimum and maximum.
            percentile: percent of the values that are not clipped, for the method "percentile".

        Returns:
            The range, low <= high.

        Raises:
            CalibrationError: the tensor was not collected, or held NaN or Inf.
        """
        ...

    def merged_range(
        self,
        tensors: Sequence[str],
        method: Calibrator,
        *,
        bits: int = 8,
        symmetric: bool = True,
        percentile: float = 99.99,
    ) -> Range:
        """Compute one range for tied tensors, from their merged histograms.

        Args:
            tensors: collected tensors that share one scale.
            method: as for ``range``.
            bits: as for ``range``.
            symmetric: as for ``range``.
            percentile: as for ``range``.

        Returns:
            The range, low <= high.

        Raises:
            CalibrationError: as ``range``.
        """
        ...


class Workbench(Protocol):
    """Statistics, scores and times that the host computes for a strategy."""

    @property
    def symmetric_only(self) -> bool:
        """True when the target takes signed grids with zero point 0 only (TensorRT)."""
        ...

    @property
    def keep_float(self) -> Mapping[str, str]:
        """Nodes that must stay float, with reasons: the decoded head, and those named by plugins and user."""
        ...

    @property
    def foreign(self) -> ImportedQuantization | None:
        """Quantization that came with the model, on edges of this float graph; None for a float model."""
        ...

    def collect(self, requests: Sequence[StatRequest]) -> CalibrationStats:
        """Collect histograms over the calibration pictures: one streaming pass, cached by content.

        Args:
            requests: the tensors.

        Returns:
            The histograms of all of them.

        Raises:
            CalibrationError: a tensor is not in the graph.
        """
        ...

    def moments(self, requests: Sequence[MomentRequest]) -> Mapping[str, F64]:
        """Compute float64 sums over the calibration pictures, in digest order.

        Args:
            requests: the sums, each with its key.

        Returns:
            Key -> array; the shape is that of the request.
        """
        ...

    def adjusted(self, overrides: Mapping[str, AnyArray]) -> Workbench:
        """Give a workbench whose statistics are those of the float network with these constants replaced.

        For plans whose overrides change the values of float tensors, as equalised channels do. Errors stay
        relative to the given model.

        Args:
            overrides: name of a constant -> array of its shape and dtype.

        Returns:
            The adjusted workbench.
        """
        ...

    @property
    def budget_ms(self) -> float | None:
        """Latency budget: p50 of the engine in milliseconds; None without one."""
        ...

    @property
    def max_drop(self) -> float | None:
        """Tolerated accuracy loss in percent; None without a limit."""
        ...

    def error(self, plan: QuantizationPlan, *, pictures: int | None = None) -> PlanScore:
        """Compare a plan with the float model on the held-out pictures, runtime optimisations off.

        Args:
            plan: the plan.
            pictures: use the first so many pictures only, and let the runtime fuse operators around the
                quantizers: several times quicker, to rank many plans.

        Returns:
            Deviation from the float model.

        Raises:
            PlanError: the plan cannot be written as a model.
        """
        ...

    def errors(
        self, plans: Sequence[QuantizationPlan], *, pictures: int | None = None
    ) -> Sequence[PlanScore]:
        """Call ``error`` for each plan; in parallel with ``--ray``.

        Args:
            plans: plans that do not depend on each other.
            pictures: as for ``error``.

        Returns:
            One score per plan.
        """
        ...

    def latency(self, plan: QuantizationPlan) -> Latency | None:
        """Time a plan on the target engine, paired with the float engines; None if it cannot run here."""
        ...

    def serve(self, plans: Sequence[QuantizationPlan]) -> Sequence[MeasuredPlan | None]:
        """Build each plan, take the fastest engine that agrees with the reference, time all interleaved.

        Args:
            plans: a plan without points is the float model.

        Returns:
            One entry per plan; None where no engine reproduces the reference outputs.
        """
        ...

    def latencies(self, plans: Sequence[QuantizationPlan]) -> Sequence[Latency | None]:
        """Time plans, unchecked, all on the engine that served the last quantized plan of ``serve``."""
        ...

    def layer_times(self, plans: Sequence[QuantizationPlan]) -> Sequence[Mapping[str, int]] | None:
        """Measure nanoseconds per node of each plan on that engine, interleaved.

        A fused layer counts for its first weighted node; layers that the runtime adds count for the node that
        reads them.

        Args:
            plans: the plans.

        Returns:
            Node -> ns for each plan; None where the engine is no ``ProfilingEngine``.
        """
        ...

    def note(self, title: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Show a table to the user and keep it for the report: the options tried, and their scores."""
        ...

    def plot(self, figure: Figure) -> None:
        """Draw a chart in the report: a Pareto front, accuracy against bits."""
        ...

    def groups(self, rows: Sequence[GroupRow]) -> None:
        """Report the decision and the measurement of every group of operators, in graph order."""
        ...

    def conclude(self, reason: str) -> None:
        """Add one sentence to the reasons of the verdict."""
        ...


class Quantizer(Protocol):
    """A quantization strategy: calls the workbench, returns a plan, never touches the graph."""

    @property
    def name(self) -> str:
        """Name for ``--strategy``; unique over all plugins."""
        ...

    @property
    def version(self) -> str:
        """Version of the strategy; part of every plan."""
        ...

    @property
    def options(self) -> type[BaseModel]:
        """Pydantic model of the options; it must refuse unknown keys."""
        ...

    def plan(self, graph: GraphView, bench: Workbench, options: Any) -> QuantizationPlan:
        """Decide scales, zero points and precisions.

        Args:
            graph: the folded float graph; read only.
            bench: statistics, scores and times.
            options: a validated instance of ``options``.

        Returns:
            A plan that carries ``graph.digest``; the same inputs give the same plan.

        Raises:
            PlanError: the graph cannot be planned.
        """
        ...


@runtime_checkable
class ImportingQuantizer(Quantizer, Protocol):
    """A strategy that also takes models that are quantized already."""

    @property
    def imports(self) -> bool:
        """True: ``graph`` is the float graph of a quantized file, ``bench.foreign`` its quantization.

        Such a strategy may be built without ``--data``.
        """
        ...


@runtime_checkable
class LimitedQuantizer(Quantizer, Protocol):
    """A strategy that can never serve some targets."""

    @property
    def refused_targets(self) -> Mapping[str, str]:
        """Target -> reason. A build for one of them raises RequestError before it starts."""
        ...


@runtime_checkable
class EncodingsOptions(Protocol):
    """Options of an ``ImportingQuantizer`` that can name a separate file with the quantization."""

    @property
    def encodings(self) -> Path | None:
        """AIMET encodings or a TensorRT calibration cache of the model; None without one."""
        ...
