"""OpenVINO on the CPU.

The only importer of ``openvino``. The precision of float parts is always set: by default OpenVINO
silently runs "FP32" models in BF16 where the processor can. What really ran is read back from the compiled
graph.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from avq.engines import common
from avq.errors import MachineError, ModelError, RequestError
from avq.types import (
    U8,
    AnyArray,
    EnginePrecision,
    EngineStatus,
    LayerTime,
    RawOutputs,
    SessionOptions,
    TensorView,
)

# Where OpenVINO cannot compile packed weights: pointwise convolutions that read one of several outputs.


def unpack_weights(openvino: Any, core: Any, network: Any) -> int:
    """Compute such weights now, in ``network`` itself; the values stay those that the graph says.

    Args:
        openvino: the module.
        core: compiles the few operators behind a weight.
        network: an ``openvino.Model``, changed in place.

    Returns:
        How many convolutions were changed.
    """
    changed = 0
    for node in network.get_ordered_ops():
        if not _is_refused(node):
            continue
        weight = openvino.Model([node.input_value(1)], [])
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        values = core.compile_model(weight, "CPU", settings)([])[0].copy()
        node.input(1).replace_source_output(openvino.op.Constant(values).output(0))
        changed += 1
    return changed


def _is_refused(node: Any) -> bool:
    if node.get_type_name() not in ("Convolution", "GroupConvolution"):
        return False
    weight = node.input_value(1)
    pointwise = weight.partial_shape.is_static and set(list(weight.shape)[-2:]) == {1}
    several = len(node.input_value(0).get_node().outputs()) > 1
    return pointwise and several and weight.get_node().get_type_name() != "Constant" and _is_constant(weight)


def _is_constant(value: Any) -> bool:
    """Whether nothing but constants lies behind it."""
    node = value.get_node()
    if node.get_type_name() == "Parameter":
        return False
    return all(_is_constant(node.input_value(index)) for index in range(node.get_input_size()))


NAME = "openvino"
_INTEGERS = ("i8", "u8")
_REPORTER = "openvino_telemetry"


class OpenVinoEngine:
    """Intel's runtime on the CPU device: one stream, one fixed number of threads."""

    name = NAME

    def status(self) -> EngineStatus:
        try:
            version = _version()
            _core()
        except MachineError as error:
            return EngineStatus(NAME, False, "", False, False, f"{error.seen}; {error.fix}")
        return EngineStatus(NAME, True, version, True, True, "")

    @property
    def float_precisions(self) -> tuple[EnginePrecision, ...]:
        if not self.status().available:
            return ()
        return ("f32", "bf16") if "BF16" in _capabilities() else ("f32",)

    def encodings(self) -> tuple[str, ...]:
        """Unsigned only: signed data was measured to come out wrong here for some convolutions."""
        return ("asymmetric", "u8")

    def open(self, model: bytes | Path, options: SessionOptions) -> OpenVinoSession:
        if options.precision not in ("f32", *self.float_precisions):
            raise MachineError(
                f"openvino cannot run the float parts in {options.precision} on this processor",
                seen=f"it offers {', '.join(self.float_precisions) or 'nothing'}",
                fix="ask for f32",
            )
        core, source = _core(), common.model_bytes(model)
        try:
            # A path keeps weights in external files reachable; bytes do not.
            network = core.read_model(str(model) if isinstance(model, Path) else source)
            compiled = _compiled(core, network, _settings(options))
        except Exception as error:  # openvino raises RuntimeError for everything
            raise common.unreadable(NAME, error) from error
        return OpenVinoSession(compiled)

    def layer_times(
        self, models: Sequence[bytes], options: SessionOptions, picture: U8, *, rounds: int = 40
    ) -> list[list[LayerTime]]:
        """Time of everything each compiled graph runs, in execution order; the models take turns.

        The lower quartile over ``rounds``: other work on the machine only ever adds. Counting costs time
        itself, so these are for comparison among each other, not with whole runs.
        """
        with ThreadPoolExecutor(2) as compilers:  # it compiles outside of Python's lock
            counted = list(compilers.map(lambda model: self._counted(model, options), models))
        times: list[dict[str, list[float]]] = [{} for _ in counted]
        for _ in range(rounds):
            for (_, request), found in zip(counted, times, strict=True):
                request.infer([picture], share_inputs=True)
                for counter in request.profiling_info:
                    found.setdefault(counter.node_name, []).append(counter.real_time.total_seconds())
        return [
            [LayerTime(n, written.get(n, ()), int(1e9 * np.percentile(s, 25))) for n, s in found.items()]
            for (written, _), found in zip(counted, times, strict=True)
        ]

    def _counted(self, model: bytes, options: SessionOptions) -> tuple[dict[str, tuple[str, ...]], Any]:
        """What each layer was written as, and a request that counts; raises as ``open`` does."""
        core = _core()
        try:
            settings = {**_settings(options), "PERF_COUNT": True}
            compiled = _compiled(core, core.read_model(model), settings)
        except Exception as error:  # openvino raises RuntimeError for everything
            raise common.unreadable(NAME, error) from error
        return _written_as(compiled.get_runtime_model()), compiled.create_infer_request()


class OpenVinoSession:
    """An opened model with one request and output buffers of its own.

    ``layer_precisions`` counts the compute layers (convolutions, matrix products) by the precision the
    compiled graph gives them.
    """

    engine = NAME

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self.inputs = tuple(_view(port) for port in compiled.inputs)
        self.outputs = tuple(_view(port) for port in compiled.outputs)
        layers = _layers(compiled.get_runtime_model())
        self.layer_precisions = Counter(precision for kind, precision in layers if common.is_compute(kind))
        self.precision = _ran_in(layers)
        self._picture = common.picture_input(self.inputs)
        self._buffers = self._bind()
        self._warm_up()

    def infer(self, tensor: U8) -> RawOutputs:
        if self._picture is None:
            raise common.no_picture(self.inputs)
        return self._run([common.check_picture(tensor, self._picture)])

    def run(self, feeds: Mapping[str, Any]) -> RawOutputs:
        arrays = common.check_feeds(feeds, self.inputs)
        return self._run([arrays[view.name] for view in self.inputs])

    def close(self) -> None:
        """Free the runtime's memory; the session cannot be used afterwards."""
        self._request = None

    def _run(self, arrays: list[AnyArray]) -> RawOutputs:
        tensor_type = _load().Tensor
        for index, array in enumerate(arrays):  # shared: the request reads the caller's memory
            self._request.set_input_tensor(index, tensor_type(_writeable(array), shared_memory=True))
        try:
            self._request.infer(share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            raise RequestError(
                "openvino could not run the model on these inputs",
                seen=str(error)[:400],
                fix="check shapes and dtypes against avq inspect",
            ) from error
        return self._buffers if self._buffers else self._borrowed()

    def _borrowed(self) -> RawOutputs:
        return {v.name: self._request.get_output_tensor(i).data for i, v in enumerate(self.outputs)}

    def _bind(self) -> dict[str, AnyArray]:
        """Output buffers of our own; none when an output has no fixed shape."""
        if any(-1 in view.shape for view in self.outputs):
            return {}
        tensor_type = _load().Tensor
        buffers = {view.name: np.empty(view.shape, view.dtype) for view in self.outputs}
        for index, view in enumerate(self.outputs):
            self._request.set_output_tensor(index, tensor_type(buffers[view.name], shared_memory=True))
        return buffers

    def _warm_up(self) -> None:
        """Two runs on black: kernels and scratch memory take their final shape."""
        if any(-1 in view.shape for view in self.inputs):
            return
        try:
            for _ in range(2):
                self._run([np.zeros(view.shape, view.dtype) for view in self.inputs])
        except RequestError as error:
            raise ModelError(
                "openvino opened the model but cannot run it",
                seen=error.seen,
                fix="check the model: avq inspect MODEL.onnx",
            ) from error


def _writeable(array: AnyArray) -> AnyArray:
    """Return a writeable view of an input: OpenVINO shares no other memory, and only reads its inputs."""
    if array.flags.writeable:
        return array
    address = array.__array_interface__["data"][0]
    interface = {**array.__array_interface__, "data": (address, False)}
    return np.asarray(SimpleNamespace(__array_interface__=interface, owner=array))


def _load() -> Any:
    try:
        with _nothing_reported():
            import openvino
    except Exception as error:  # a half-installed runtime raises anything
        raise common.missing_runtime(NAME, error) from error
    return openvino


@contextmanager
def _nothing_reported() -> Iterator[None]:
    """By default OpenVINO reports its import to its makers: over the network, from a process it forks, with an id
    that it keeps in the home folder. Without that module it takes a stub of its own.
    """
    if _REPORTER in sys.modules:  # somebody else imported it, and may want it
        yield
        return
    sys.modules[_REPORTER] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[_REPORTER]


@lru_cache(maxsize=1)
def _core() -> Any:
    try:
        core = _load().Core()
    except RuntimeError as error:
        raise MachineError(
            "openvino cannot start here", seen=str(error)[:400], fix="reinstall openvino"
        ) from error
    if "CPU" not in core.available_devices:
        raise MachineError(
            "openvino has no CPU device here", seen=str(core.available_devices), fix="reinstall openvino"
        )
    return core


def _version() -> str:
    return str(_load().__version__).split("-")[0]


@lru_cache(maxsize=1)
def _capabilities() -> tuple[str, ...]:
    return tuple(_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def _settings(options: SessionOptions) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": options.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": options.precision,
        "ENABLE_CPU_PINNING": False,
        "LOG_LEVEL": "LOG_NONE",
    }
    if not (
        options.optimise and options.integers
    ):  # Q/DQ stay the rounding they are written as; nothing runs in integers
        settings["LP_TRANSFORMS_MODE"] = "NO"
    return settings


def _compiled(core: Any, network: Any, settings: Mapping[str, Any]) -> Any:
    """The compiled network; what it refuses for its packed weights is tried once more with them unpacked."""
    try:
        return core.compile_model(network, "CPU", settings)
    except RuntimeError:
        if not unpack_weights(_load(), core, network):
            raise
        return core.compile_model(network, "CPU", settings)


def _view(port: Any) -> TensorView:
    dims = tuple(dim.get_length() if dim.is_static else -1 for dim in port.partial_shape)
    return TensorView(_name(port), str(np.dtype(port.element_type.to_dtype())), dims)


def _name(port: Any) -> str:
    """The model file's name of a graph input or output; merged nodes leave several to choose from."""
    written = str(port.node.friendly_name).removesuffix("/sink_port_0")
    return written if written in port.names else str(port.any_name)


def _layers(runtime_model: Any) -> list[tuple[str, str]]:
    """(layer type, precision) of everything the compiled graph runs."""
    found = (op.get_rt_info() for op in runtime_model.get_ordered_ops())
    return [(_text(info["layerType"]), _kernel_precision(info)) for info in found]


def _kernel_precision(info: Any) -> str:
    """What the kernel multiplies in, from its name ("brgconv_avx512_I8"), else the layer's own precision.

    The name is the better witness: a layer with packed integer weights and a float kernel calls itself "i8".
    """
    kernel = _text(info["primitiveType"]).rpartition("_")[2].lower().replace("fp", "f")
    return kernel if kernel in ("i8", "u8", "bf16", "f16", "f32") else _text(info["runtimePrecision"])


def _written_as(runtime_model: Any) -> dict[str, tuple[str, ...]]:
    """Layer of the compiled graph -> names of the model file's nodes that were fused into it."""
    layers = ((op.get_friendly_name(), op.get_rt_info()) for op in runtime_model.get_ordered_ops())
    return {
        name: tuple(_text(info["originalLayersNames"]).split(","))
        for name, info in layers
        if "originalLayersNames" in info
    }


def _text(value: Any) -> str:
    """Run-time info is a string, or a wrapper of one, depending on OpenVINO's version."""
    return value if isinstance(value, str) else str(value.astype(str))


def _ran_in(layers: list[tuple[str, str]]) -> str:
    compute = {precision for kind, precision in layers if common.is_compute(kind)}
    floats = {p for p in compute if p not in _INTEGERS} or {p for _, p in layers}
    lowest = next((name for name in ("bf16", "f16") if name in floats), "f32")
    return common.precision_name(any(p in _INTEGERS for p in compute), lowest)
