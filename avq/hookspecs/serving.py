"""Engines, decoders, sources and sinks: the objects that serve a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from avq.types import (
    F32,
    I64,
    U8,
    CompiledEngine,
    DecoderSpec,
    EnginePrecision,
    EngineStatus,
    Frame,
    GraphView,
    LayerTime,
    PreprocessSpec,
    Published,
    RawOutputs,
    SessionOptions,
    StageTimes,
)


class Session(Protocol):
    """An opened model. Not thread-safe: one session per thread."""

    @property
    def engine(self) -> str:
        """Name of the engine that opened it."""
        ...

    @property
    def precision(self) -> str:
        """Precision reported by the runtime: "f32", "bf16", "int8+f32", "int8+bf16" ..."""
        ...

    def infer(self, tensor: U8) -> RawOutputs:
        """Run one picture.

        Args:
            tensor: (1, 3, h, w) uint8, as ``ModelInput.tensor``.

        Returns:
            Output name -> array, borrowed until the next call.

        Raises:
            RequestError: wrong shape or dtype.
        """
        ...

    def run(self, feeds: Mapping[str, Any]) -> RawOutputs:
        """Run named inputs of any dtype, for models that do not take pictures.

        Args:
            feeds: input name -> array.

        Returns:
            Output name -> array, borrowed until the next call.

        Raises:
            RequestError: an input is missing, unknown, or of the wrong shape or dtype.
        """
        ...

    def close(self) -> None:
        """Free the model; no other method is called afterwards."""
        ...


@runtime_checkable
class PlannedSession(Session, Protocol):
    """A session that knows the precision of each layer it runs."""

    def require_planned(self, wanted: Mapping[str, str]) -> tuple[str, ...]:
        """Compare the layers with the plan.

        Args:
            wanted: node -> "int8", "fp16" or "fp32".

        Returns:
            Names of layers that run in FP16 and were planned in INT8.

        Raises:
            ModelError: layers planned in INT8 or FP16 run in FP32; names them.
        """
        ...


class Engine(Protocol):
    """A runtime of one vendor, imported late."""

    @property
    def name(self) -> str:
        """Name for ``--target`` and for manifests; unique over all plugins."""
        ...

    def status(self) -> EngineStatus:
        """Report whether it is installed and what it can do here; never raises."""
        ...

    @property
    def float_precisions(self) -> tuple[EnginePrecision, ...]:
        """Precisions that float models run in here, slowest first ("f32", "bf16")."""
        ...

    def encodings(self) -> tuple[str, ...]:
        """List encodings of a plan worth trying here, best first: "s8", "u8", "asymmetric"."""
        ...

    def open(self, model: bytes | Path, options: SessionOptions) -> Session:
        """Open an ONNX model.

        Args:
            model: the file's bytes or its path.
            options: threads, precision, optimisations.

        Returns:
            A session of its own buffers.

        Raises:
            MachineError: this machine cannot run it.
            ModelError: the file cannot be read.
        """
        ...


@runtime_checkable
class CompilingEngine(Engine, Protocol):
    """An engine whose models are compiled ahead, for GPUs by name, and stored in the bundle."""

    @property
    def compiles_on_target(self) -> bool:
        """True: ``avq compile`` builds engines on the vehicle only. False: ``avq build`` builds them."""
        ...

    def architecture(self) -> str:
        """Give the compute capability of the GPU of this machine, such as "sm87"; "" without one."""
        ...

    def chosen_architectures(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Normalise the architectures of ``--gpu-arch``.

        Args:
            names: as typed; empty takes the usual ones.

        Returns:
            Names in the builder's spelling, without duplicates; empty for an engine that compiles on the target.

        Raises:
            RequestError: an architecture that it does not build for.
        """
        ...

    def compile(
        self,
        model: bytes,
        architecture: str,
        options: Any = None,
        report: Callable[[str], None] = lambda line: None,
    ) -> CompiledEngine:
        """Compile one ONNX model for one architecture; takes seconds to minutes.

        Args:
            model: the file.
            architecture: one of ``chosen_architectures``, ``architecture()``, or "current" for this machine's.
            options: build options of TensorRT 10 (calibrator, DLA core); None takes the types of the file.
            report: is called with one line per phase.

        Returns:
            The engine, its architecture, and the build time in seconds.

        Raises:
            ModelError: the target cannot read or build the model; names the node.
            RequestError: ``options`` or ``architecture`` that the engine does not have.
            MachineError: nothing can be compiled on this machine.
        """
        ...

    def open_engine(self, engine: bytes, precision: str) -> Session:
        """Open compiled bytes, whose digest the host has checked.

        Args:
            engine: ``CompiledEngine.data``.
            precision: to report when the engine does not know it.

        Returns:
            A session as of ``open``.

        Raises:
            BundleError: an engine of another GPU or release.
            MachineError: no GPU here.
        """
        ...


@runtime_checkable
class ProfilingEngine(Engine, Protocol):
    """An engine that can time every layer."""

    def layer_times(
        self, models: Sequence[bytes], options: SessionOptions, picture: U8, *, rounds: int = 40
    ) -> Sequence[Sequence[LayerTime]]:
        """Time the layers of several models, interleaved.

        Args:
            models: ONNX files.
            options: as for ``open``.
            picture: (1, 3, h, w) uint8, the input of all of them.
            rounds: inferences per model.

        Returns:
            Per model its layers in execution order; each time is in nanoseconds of one inference.

        Raises:
            ModelError, MachineError: as ``open``.
        """
        ...


class Decoder(Protocol):
    """A head family: recognised by graph structure, decoded without the graph."""

    @property
    def family(self) -> str:
        """Name for ``--decoder`` and for manifests; unique over all plugins."""
        ...

    @property
    def nms_in_graph(self) -> bool:
        """True when the graph itself removes overlapping boxes."""
        ...

    def recognise(self, graph: GraphView) -> DecoderSpec | None:
        """Give the spec when the graph's structure is this family's, else None. Never by node names."""
        ...

    def head_nodes(self, graph: GraphView, spec: DecoderSpec) -> Mapping[str, str]:
        """List nodes that must stay float, with the reason: output convolutions and all nodes after them."""
        ...

    def presets(self, graph: GraphView, spec: DecoderSpec) -> Sequence[PreprocessSpec]:
        """List the preprocessing this family is published with, most likely first."""
        ...

    def candidates(self, raw: RawOutputs, spec: DecoderSpec, score_threshold: float) -> tuple[F32, F32, I64]:
        """Decode raw outputs, before NMS.

        Args:
            raw: output name -> array, as the session returns it.
            spec: the bundle's decoder.
            score_threshold: boxes below are dropped.

        Returns:
            Boxes (N, 4) float32 x0 y0 x1 y1 in network-input pixels, scores (N,) float32, class ids (N,) int64.
        """
        ...


class FrameSource(Protocol):
    """An opened camera, stream, file, folder or log."""

    @property
    def live(self) -> bool:
        """True for cameras, streams and scene://: newest frame wins. False: every frame is processed."""
        ...

    @property
    def fps(self) -> float:
        """Nominal frames per second; 0 when unknown."""
        ...

    def read(self) -> tuple[U8, int] | None:
        """Read the next picture.

        Returns:
            (H, W, 3) uint8 BGR and its capture time in ns of ``time.monotonic_ns``; None at the end.

        Raises:
            UnreadablePictureError: this picture cannot be read; the next call continues after it.
            DataError: the source breaks.
        """
        ...

    def close(self) -> None:
        """Free the device or file."""
        ...


@runtime_checkable
class FileSource(FrameSource, Protocol):
    """A source over recorded material, which knows its position and its unreadable parts."""

    @property
    def position_ns(self) -> int | None:
        """Recording time of the last picture since the first, in ns; None when the material has no times."""
        ...

    @property
    def lost(self) -> Mapping[str, int]:
        """Cause -> frames skipped so far, such as {"unreadable": 2}; each takes a frame number."""
        ...

    @property
    def remark(self) -> str:
        """First part that could not be read, in words; "" when all could."""
        ...


class SourceType(Protocol):
    """Opens URIs of some schemes; runs inside the capture process."""

    @property
    def schemes(self) -> tuple[str, ...]:
        """URI forms it opens: "name" for ``name://``, ".suffix" for files."""
        ...

    def open(self, uri: str, *, open_timeout_ms: int, read_timeout_ms: int) -> FrameSource:
        """Open a URI.

        Args:
            uri: with one of ``schemes``.
            open_timeout_ms: milliseconds until an open that hangs must raise DataError.
            read_timeout_ms: milliseconds until a read that hangs must raise DataError.

        Returns:
            The source, before its first picture.

        Raises:
            RequestError: a wrong URI.
            DataError: missing, empty or broken.
        """
        ...


@runtime_checkable
class LiveSourceType(SourceType, Protocol):
    """A source type that declares whether its sources come back after they fail."""

    @property
    def live(self) -> bool:
        """True for cameras and streams: a failed open is tried again, as a failed read is."""
        ...


class Sink(Protocol):
    """Receives every published message on its own thread."""

    @property
    def wants_pixels(self) -> bool:
        """True: ``write`` gets a copy of the frame; False: it gets None."""
        ...

    def write(self, message: Published, frame: Frame | None) -> None:
        """Take one message. An exception ends this sink, not the run."""
        ...

    def close(self) -> None:
        """Write what is buffered and free the target."""
        ...


@runtime_checkable
class TimingSink(Sink, Protocol):
    """A sink that also takes the stage times of every message."""

    def write_timing(self, message: Published, times: StageTimes) -> None:
        """Take the stage times, in ns; called right before ``write`` of the same message."""
        ...


@runtime_checkable
class EventSink(Sink, Protocol):
    """A sink that also takes events: alerts, camera failures, changes of the mode."""

    @property
    def events_only(self) -> bool:
        """True: ``write`` is never called, and the sink's count of written entries counts events."""
        ...

    def write_event(self, event: Mapping[str, Any]) -> None:
        """Take one event: ``kind`` (str), ``t_ns`` (int, monotonic ns) and the fields of that kind."""
        ...


@runtime_checkable
class AlertSource(Sink, Protocol):
    """A sink that raises events of its messages; it is closed before the sinks that take them."""

    def connect(self, emit: Callable[[Mapping[str, Any]], None]) -> None:
        """Keep the function that passes an event on; called once, before the first message.

        Args:
            emit: takes an event with ``kind`` (str) and ``t_ns`` (int, monotonic ns), from any thread.
        """
        ...


@runtime_checkable
class ReportingSink(Sink, Protocol):
    """A sink with counters, shown in the status, the summary and ``/metrics``."""

    @property
    def gauges(self) -> frozenset[str]:
        """Names in ``report()`` that may also fall; all others only grow."""
        ...

    def report(self) -> Mapping[str, int]:
        """Give name -> count; called from any thread."""
        ...


class SinkType(Protocol):
    """Opens a sink from its URI or path."""

    @property
    def schemes(self) -> tuple[str, ...]:
        """URI forms it opens: "name" for ``name:`` and ``name://``, ".suffix" for files."""
        ...

    def open(self, uri: str, *, labels: Sequence[str]) -> Sink:
        """Open a URI before the first frame.

        Args:
            uri: with one of ``schemes``.
            labels: class names of the bundle, by class id.

        Returns:
            The sink.

        Raises:
            RequestError: a wrong URI.
            DataError: the target cannot be written.
        """
        ...


@runtime_checkable
class UriChecker(Protocol):
    """A source or sink type that checks a URI without opening it, for ``avq config check``."""

    def check(self, uri: str) -> None:
        """Check syntax and parameters; open nothing, use no network.

        Raises:
            RequestError: a wrong URI.
        """
        ...
