"""From an ONNX file to a TensorRT engine, with 10.x and 11.x: whatever a release lacks is not touched.

Two roads. Strongly typed (10.x and 11.x): precisions are the file's, INT8 as Q/DQ. Implicit (10.x only): TensorRT
chooses, from ranges that a calibrator or a calibration cache gives; DLA of 10.x takes nothing else.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from avq.engines.cuda import Cuda
from avq.errors import MachineError, ModelError, RequestError, nearest
from avq.types import U8

# INT8 calibration by TensorRT 10 itself, fed with avq's own network inputs, through its calibration
# cache.

#: avq's name -> the class; entropy is the second kind: the first leaves fused tensors without a range.
METHODS = {"entropy": "IInt8EntropyCalibrator2", "minmax": "IInt8MinMaxCalibrator"}


def calibrator(
    trt: Any,
    method: str,
    pictures: Iterable[U8],
    *,
    cache: bytes,
    keep: Callable[[bytes], None],
    cuda: Cuda | None,
) -> Any:
    """An object for ``config.int8_calibrator``.

    One picture is one batch: TensorRT's histograms grow with the largest value seen, so its scales depend on
    batch size and order; both are the set's order here, and the cache that comes out is kept.

    Raises RequestError for an unknown method, or with neither pictures nor a cache.
    """
    if method not in METHODS:
        raise RequestError(f"TensorRT has no calibration '{method}'", fix=nearest(method, METHODS))
    if cuda is None and not cache:
        raise RequestError(
            "there is nothing to calibrate with", fix="give a calibration cache, or pictures and a card"
        )
    base: Any = getattr(trt, METHODS[method])

    class Calibrator(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self._pictures = iter(pictures)
            self._address = 0

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: list[str]) -> list[int] | None:
            picture = next(self._pictures, None)
            if picture is None or cuda is None:
                return None
            if not self._address:
                self._address = cuda.device_bytes(picture.nbytes)
            cuda.to_device(self._address, picture)
            cuda.synchronize()
            return [self._address for _ in names]

        def read_calibration_cache(self) -> bytes | None:
            return cache or None

        def write_calibration_cache(self, cache: Any) -> None:
            keep(bytes(memoryview(cache)))

    return Calibrator()


# What TensorRT says, kept: it prints to standard error otherwise, and its errors are the only reasons
# it gives.


@contextmanager
def no_collection() -> Iterator[None]:
    """Around calls of TensorRT that may log; also a decorator.

    It logs while it holds a lock, and the end of a builder takes the same one. A collection inside the log that
    finds a builder (the traceback of an error kept it in a cycle) would wait for that lock for ever.
    """
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def make_log(trt: Any) -> Any:
    """A logger with lists ``errors`` and ``warnings``; ``trt`` is the module whose ILogger it is."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(message)

    return Log()


def last_words(log: Any) -> str:
    """The last error on one line; '' when there was none."""
    lines: list[str] = getattr(log, "errors", [])
    return " ".join(lines[-1].split())[:400] if lines else ""


Report = Callable[[str], None]


@dataclass(frozen=True)
class Calibration:
    """What TensorRT 10's own calibration reads.

    Attributes:
        method: its entropy calibration (the second one), or minimum and maximum.
        pictures: network inputs, (1, 3, h, w) uint8 each, as avq's own preprocessing leaves them.
        cache: of an earlier calibration; then no picture is read. b'' for none.
        keep: called with the bytes of the new cache.
    """

    method: Literal["entropy", "minmax"] = "entropy"
    pictures: Iterable[U8] = ()
    cache: bytes = b""
    keep: Callable[[bytes], None] = lambda cache: None


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes:
        calibration: takes the implicit road (10.x); None takes the file's own types.
        layer_precisions: node name -> "int8", "fp16" or "fp32", where the implicit road must not choose.
        dla_core: this DLA core, what it cannot do on the GPU; None for the GPU alone.
        timing_cache: of earlier builds on this machine; b'' to begin one, None to leave the whole matter alone.
    """

    calibration: Calibration | None = None
    layer_precisions: Mapping[str, str] = field(default_factory=dict)
    dla_core: int | None = None
    timing_cache: bytes | None = b""

    @property
    def implicit(self) -> bool:
        return self.calibration is not None


@dataclass(frozen=True)
class Built:
    """An engine file, and what the build learnt: tactics' times, layers of the parsed network."""

    data: bytes
    timing_cache: bytes
    layers: int
    seconds: float


@no_collection()
def build(
    trt: Any,
    log: Any,
    model: bytes,
    options: BuildOptions,
    *,
    cuda: Cuda | None = None,
    report: Report = lambda line: None,
) -> Built:
    """Parse and build for the card of this machine.

    Args:
        trt: the module ``tensorrt``, or one with its classes.
        log: as `tensorrt_log.make_log` gives it.
        cuda: where a calibrator puts its pictures; needed for calibration without a cache.
        report: is called with the name of every phase; a build takes minutes.

    Raises:
        ModelError: the parser refuses a node (named), or no implementation is found.
        RequestError: this release has no calibrators, or no such DLA core.
    """
    builder = trt.Builder(log)
    network = builder.create_network(_network_flags(trt, options))
    parse(trt, network, model, log)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the inspector can tell precisions
    if hasattr(config, "progress_monitor"):
        config.progress_monitor = _monitor(trt, report)
    if options.implicit:
        _choose_implicitly(trt, network, config, options, cuda)
    if options.dla_core is not None:
        _put_on_dla(trt, builder, config, options.dla_core)
    if options.timing_cache is not None:
        _attach_timing_cache(config, options.timing_cache)
    started_s = time.monotonic()
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ModelError(
            "TensorRT cannot build the model",
            seen=last_words(log) or "no reason given",
            fix="avq lint MODEL --target tensorrt; leave the named layer float: avq_keep_float",
        )
    seconds = time.monotonic() - started_s
    kept = config.get_timing_cache() if options.timing_cache is not None else None
    times = bytes(memoryview(kept.serialize())) if kept is not None else b""
    return Built(bytes(memoryview(engine)), times, int(network.num_layers), seconds)


def parse(trt: Any, network: Any, model: bytes, log: Any, *, target: str = "tensorrt") -> None:
    """Read an ONNX file into ``network``; ModelError names the first node that is refused."""
    parser = trt.OnnxParser(network, log)
    if parser.parse(model):
        return
    first = parser.get_error(0) if parser.num_errors else None
    node, operator = (_attribute(first, name) for name in ("node_name", "node_operator"))
    raise ModelError(
        f"{target} cannot read {f'node {node!r} ({operator})' if node or operator else 'the model'}",
        seen=_attribute(first, "desc")[:400] or last_words(log),
        fix=f"avq lint MODEL --target {target} says what to change",
    )


def _attribute(error: Any, name: str) -> str:
    ask = getattr(error, name, None)
    return str(ask()) if callable(ask) else ""


def _network_flags(trt: Any, options: BuildOptions) -> int:
    known = trt.NetworkDefinitionCreationFlag
    if not options.implicit:
        if not hasattr(known, "STRONGLY_TYPED"):
            raise MachineError(
                "this TensorRT is too old: it has no strongly typed networks",
                seen=f"version {trt.__version__}",
                fix="TensorRT 10 or newer: JetPack 6, DRIVE OS 7",
            )
        return 1 << int(known.STRONGLY_TYPED)
    if not hasattr(trt, "IInt8EntropyCalibrator2") or not hasattr(trt.BuilderFlag, "INT8"):
        raise RequestError(
            "this TensorRT has no calibrators: INT8 is what the file says",
            seen=f"version {trt.__version__}",
            fix="give it a bundle with Q/DQ, as avq build --target tensorrt writes it",
        )
    return 1 << int(known.EXPLICIT_BATCH) if hasattr(known, "EXPLICIT_BATCH") else 0


def _choose_implicitly(trt: Any, network: Any, config: Any, options: BuildOptions, cuda: Cuda | None) -> None:
    config.set_flag(trt.BuilderFlag.INT8)
    config.set_flag(trt.BuilderFlag.FP16)
    calibration = options.calibration
    assert calibration is not None
    config.int8_calibrator = calibrator(
        trt,
        calibration.method,
        calibration.pictures,
        cache=calibration.cache,
        keep=calibration.keep,
        cuda=cuda,
    )
    types = {"int8": trt.DataType.INT8, "fp16": trt.DataType.HALF, "fp32": trt.DataType.FLOAT}
    pinned = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        wanted = options.layer_precisions.get(layer.name)
        if wanted is not None:
            layer.precision = types[wanted]
            pinned += 1
    if pinned:
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)


def _put_on_dla(trt: Any, builder: Any, config: Any, core: int) -> None:
    cores = int(builder.num_DLA_cores)
    if core >= cores:
        raise RequestError(
            f"there is no DLA core {core}",
            seen=f"TensorRT {trt.__version__} finds {cores} here",
            fix="Orin has two; releases 10.8 to 11.3 drive none",
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _attach_timing_cache(config: Any, cache: bytes) -> None:
    """Times of tactics measured before; a cache of another card or release is refused by TensorRT itself."""
    if not config.set_timing_cache(config.create_timing_cache(cache), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _monitor(trt: Any, report: Report) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                report(f"{phase_name} ({num_steps} steps)")

        def phase_finish(self, phase_name: str) -> None: ...

        def step_complete(self, phase_name: str, step: int) -> bool:
            return True

    return Monitor()
