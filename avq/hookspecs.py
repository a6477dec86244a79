"""What a plugin may provide, and the protocols its objects follow.

Entry-point group ``avq``. The registering hooks take no arguments and return a sequence; names are unique
over all plugins. No hook is called per frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

from avq.types import (
    F32,
    I64,
    U8,
    AnyArray,
    Calibrator,
    DecoderSpec,
    EnginePrecision,
    EngineStatus,
    Figure,
    Finding,
    Frame,
    GraphView,
    GroupRow,
    ImportedQuantization,
    Latency,
    MeasuredPlan,
    MomentRequest,
    PlanScore,
    PreprocessSpec,
    Published,
    QuantizationPlan,
    Range,
    RawOutputs,
    Recipe,
    SessionOptions,
    StatRequest,
)
from avq.types.frame import F64

if TYPE_CHECKING:
    from pydantic import BaseModel

hookspec = pluggy.HookspecMarker("avq")
hookimpl = pluggy.HookimplMarker("avq")


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
        """The clipping range ``method`` chooses for ``tensor``.

        ``symmetric`` ranges are (-t, t); others are that range cut to the exact minimum and maximum.
        Raises CalibrationError when the tensor was not collected or held NaN or Inf.
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
        """One range for tied tensors, from their merged histograms."""
        ...


class Workbench(Protocol):
    """What a strategy may ask of the host while it decides."""

    @property
    def symmetric_only(self) -> bool:
        """True when the target takes signed grids with zero point 0 only (TensorRT)."""
        ...

    @property
    def keep_float(self) -> Mapping[str, str]:
        """Nodes that must stay float, with reasons: the decoded head, and what plugins and user asked."""
        ...

    @property
    def foreign(self) -> ImportedQuantization | None:
        """Quantization that came with the model, on edges of this float graph; None for a float model."""
        ...

    def collect(self, requests: Sequence[StatRequest]) -> CalibrationStats:
        """Histograms over the calibration pictures: one streaming pass, cached by content."""
        ...

    def moments(self, requests: Sequence[MomentRequest]) -> Mapping[str, F64]:
        """Float sums over the calibration pictures in digest order, by the requests' keys."""
        ...

    def adjusted(self, overrides: Mapping[str, AnyArray]) -> Workbench:
        """The same workbench with counts and sums of the float network with these constants replaced.

        For plans whose overrides change what float tensors hold, as equalised channels do; their errors are
        still told against the model as it was given.
        """
        ...

    @property
    def budget_ms(self) -> float | None:
        """The wanted p50 of the engine in milliseconds; None when the user named none."""
        ...

    @property
    def max_drop(self) -> float | None:
        """The tolerated loss in percent; None when the user named none."""
        ...

    def error(self, plan: QuantizationPlan, *, pictures: int | None = None) -> PlanScore:
        """``plan`` against the float model on the held-out pictures, runtime optimisations off.

        ``pictures`` looks at the first so many only, and lets the runtime fuse what it likes around the quantizers:
        several times quicker, to rank many plans.
        """
        ...

    def errors(
        self, plans: Sequence[QuantizationPlan], *, pictures: int | None = None
    ) -> Sequence[PlanScore]:
        """``error`` of each. Plans that can be judged independently of each other: with ``--ray``, they are."""
        ...

    def latency(self, plan: QuantizationPlan) -> Latency | None:
        """Measured on the target engine, paired with the float engines; None if it cannot run here."""
        ...

    def serve(self, plans: Sequence[QuantizationPlan]) -> Sequence[MeasuredPlan | None]:
        """Build each, take the fastest engine that agrees with its reference, time all interleaved.

        A plan without points is the float model. None for a plan that no engine here runs rightly.
        """
        ...

    def latencies(self, plans: Sequence[QuantizationPlan]) -> Sequence[Latency | None]:
        """Times only, unchecked, all on the engine that served the last quantized plan of ``serve``."""
        ...

    def layer_times(self, plans: Sequence[QuantizationPlan]) -> Sequence[Mapping[str, int]] | None:
        """Nanoseconds per node of each plan on that engine, taking turns; None where it does not tell.

        A fused layer's time stands at its first weighted node; what the runtime adds between layers
        stands at the node that reads it.
        """
        ...

    def note(self, title: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Show a table to the user and keep it for the report: what was tried, and how it scored."""
        ...

    def plot(self, figure: Figure) -> None:
        """Draw a chart in the report: a Pareto front, accuracy against bits."""
        ...

    def groups(self, rows: Sequence[GroupRow]) -> None:
        """What was decided and measured for every group of operators, in graph order: bars and a table."""
        ...

    def conclude(self, reason: str) -> None:
        """One sentence that joins the reasons of the verdict."""
        ...


class Quantizer(Protocol):
    """A quantization strategy: asks the workbench, returns a plan, never touches the graph."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def options(self) -> type[BaseModel]:
        """pydantic model of the strategy's options; unknown keys are refused."""
        ...

    def plan(self, graph: GraphView, bench: Workbench, options: Any) -> QuantizationPlan: ...


class Session(Protocol):
    """An opened model. Not thread-safe: one session per thread."""

    @property
    def engine(self) -> str: ...

    @property
    def precision(self) -> str:
        """What really runs, as the runtime reports it: "f32", "bf16", "int8+f32", "int8+bf16" ..."""
        ...

    def infer(self, tensor: U8) -> RawOutputs:
        """Run one ModelInput tensor, (1, 3, h, w) uint8. Outputs are borrowed until the next call."""
        ...

    def run(self, feeds: Mapping[str, Any]) -> RawOutputs:
        """Run named inputs of any dtype; for models that do not take pictures."""
        ...

    def close(self) -> None: ...


class Engine(Protocol):
    """A runtime of one vendor, imported late."""

    @property
    def name(self) -> str: ...

    def status(self) -> EngineStatus:
        """Whether it is installed and what it can do here; never raises."""
        ...

    @property
    def float_precisions(self) -> tuple[EnginePrecision, ...]:
        """Precisions float models can really run in here, slowest first ("f32", "bf16")."""
        ...

    def encodings(self) -> tuple[str, ...]:
        """Encodings of a plan worth trying here, best first: "s8", "u8", "asymmetric"."""
        ...

    def open(self, model: bytes | Path, options: SessionOptions) -> Session:
        """Open an ONNX model. Raises MachineError when this machine cannot, ModelError on a bad file."""
        ...


class Decoder(Protocol):
    """A head family: recognised by graph structure, decoded without the graph."""

    @property
    def family(self) -> str: ...

    @property
    def nms_in_graph(self) -> bool: ...

    def recognise(self, graph: GraphView) -> DecoderSpec | None:
        """The spec when the graph's structure is this family's, else None. Never by node names."""
        ...

    def head_nodes(self, graph: GraphView, spec: DecoderSpec) -> Mapping[str, str]:
        """Nodes that decode and must stay float, with the reason: bare output convs and all after them."""
        ...

    def presets(self, graph: GraphView, spec: DecoderSpec) -> Sequence[PreprocessSpec]:
        """Preprocessing this family is published with, most likely first."""
        ...

    def candidates(self, raw: RawOutputs, spec: DecoderSpec, score_threshold: float) -> tuple[F32, F32, I64]:
        """Boxes (N, 4) xyxy in network-input pixels, scores (N,), class ids (N,), before NMS."""
        ...


class FrameSource(Protocol):
    """An opened camera, file, folder or log.

    A file may also have ``position_ns``, when the last picture was taken, since the first, and ``remark``, what of
    it could not be read, in words.
    """

    @property
    def live(self) -> bool:
        """True for cameras, streams and scene://: newest frame wins. False: every frame is processed."""
        ...

    @property
    def fps(self) -> float:
        """Nominal frames per second; 0 when unknown."""
        ...

    def read(self) -> tuple[U8, int] | None:
        """The next picture (H, W, 3) uint8 BGR and its capture time in ns (monotonic), or None at the end.

        Raises DataError when the source breaks.
        """
        ...

    def close(self) -> None: ...


class SourceType(Protocol):
    """Opens URIs of some schemes; runs inside the capture process."""

    @property
    def schemes(self) -> tuple[str, ...]: ...

    def open(self, uri: str, *, open_timeout_ms: int, read_timeout_ms: int) -> FrameSource: ...


class Sink(Protocol):
    """Receives every published message on its own thread."""

    @property
    def wants_pixels(self) -> bool: ...

    def write(self, message: Published, frame: Frame | None) -> None: ...

    def close(self) -> None: ...


class SinkType(Protocol):
    """Opens a sink from its URI or path; ``labels`` are the bundle's class names."""

    @property
    def schemes(self) -> tuple[str, ...]: ...

    def open(self, uri: str, *, labels: Sequence[str]) -> Sink: ...


@hookspec
def avq_register_quantizers() -> Sequence[Quantizer]:  # type: ignore[empty-body]
    """Quantization strategies this plugin brings. Called once, when a build or ``avq plugins`` starts."""


@hookspec
def avq_register_engines() -> Sequence[Engine]:  # type: ignore[empty-body]
    """Runtimes this plugin brings. Called once; must not import the vendor's library yet."""


@hookspec
def avq_register_decoders() -> Sequence[Decoder]:  # type: ignore[empty-body]
    """Head families this plugin brings, asked after the built-in ones."""


@hookspec
def avq_register_sources() -> Sequence[SourceType]:  # type: ignore[empty-body]
    """Camera and file types this plugin brings."""


@hookspec
def avq_register_sinks() -> Sequence[SinkType]:  # type: ignore[empty-body]
    """Message sinks this plugin brings."""


@hookspec
def avq_keep_float(graph: GraphView, recipe: Recipe) -> Mapping[str, str]:  # type: ignore[empty-body]
    """Nodes that must stay float: node name -> reason. All answers are united. Called before planning."""


@hookspec
def avq_check_bundle(bundle: Path, recipe: Recipe) -> Sequence[Finding]:  # type: ignore[empty-body]
    """Look at the staged bundle after verification; one finding of severity "error" rejects it."""


@hookspec
def avq_build_finished(bundle: Path, report: Mapping[str, Any]) -> None:
    """The bundle is in place. ``report`` is the object ``avq build --json`` prints."""


@hookspec
def avq_budget_missed(event: Mapping[str, Any]) -> None:
    """The latency budget is violated. Off the frame path, from a bounded queue, each plugin isolated."""


__all__ = [
    "CalibrationStats",
    "Decoder",
    "Engine",
    "FrameSource",
    "Quantizer",
    "Session",
    "Sink",
    "SinkType",
    "SourceType",
    "Workbench",
    "hookimpl",
    "hookspec",
    "avq_budget_missed",
    "avq_build_finished",
    "avq_check_bundle",
    "avq_keep_float",
    "avq_register_decoders",
    "avq_register_engines",
    "avq_register_quantizers",
    "avq_register_sinks",
    "avq_register_sources",
]
