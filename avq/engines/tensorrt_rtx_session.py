"""Running an RTX engine: checked before it is read, kernels compiled once and kept, one CUDA graph per frame.

Written to the interface of the installed library's classes. No machine that avq was developed on has a card that
TensorRT for RTX runs on, so nothing of this file but its refusals has been run.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from avq.engines import common
from avq.engines.cuda import Cuda, open_cuda
from avq.errors import BundleError, RequestError
from avq.types import U8, AnyArray, RawOutputs, TensorView

NAME = "tensorrt-rtx"
_WARM_UP = 3


def open_engine(trt: Any, log: Any, data: bytes, *, precision: str) -> RtxSession:
    """A session of a serialized engine, warmed up.

    Raises MachineError where there is no card, BundleError for an engine that is not for this machine.
    """
    runtime = trt.Runtime(log)
    runtime.engine_host_code_allowed = False
    _require_valid(trt, runtime, data)
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise BundleError(
            "TensorRT for RTX cannot load the engine", seen=_last(log), fix="compile it on this machine"
        )
    return RtxSession(trt, runtime, engine, open_cuda(), _cache_path(trt, data), precision=precision)


def _require_valid(trt: Any, runtime: Any, data: bytes) -> None:
    """The library's own check of version, architecture and driver, where it has one; no proof against tampering."""
    ask = getattr(runtime, "get_engine_validity", None)
    if ask is None:
        return
    validity, diagnostics = ask(data)
    if validity != trt.EngineValidity.INVALID:
        return
    members = trt.EngineInvalidityDiagnostics.__members__
    causes = [name for name, member in members.items() if int(diagnostics) & int(member)]
    raise BundleError(
        "the engine is not for this machine",
        seen=", ".join(causes).lower().replace("_", " ") or "no cause given",
        fix="build it again with --gpu-arch of this card and this version of the library",
    )


class RtxSession:
    """An engine with its buffers bound; ``infer`` copies in, runs, copies out."""

    engine = NAME

    def __init__(
        self, trt: Any, runtime: Any, engine: Any, cuda: Cuda, cache: Path, *, precision: str
    ) -> None:
        self._runtime, self._engine, self._cuda = runtime, engine, cuda
        self.precision = precision
        views = [(_view(trt, engine, i), _is_input(trt, engine, i)) for i in range(engine.num_io_tensors)]
        self.inputs = tuple(view for view, is_input in views if is_input)
        self.outputs = tuple(view for view, is_input in views if not is_input)
        self._picture = common.picture_input(self.inputs)
        config, kept = _runtime_config(trt, engine, cache)
        self._context = engine.create_execution_context(config)
        self._host = {v.name: cuda.pinned(v.shape, v.dtype) for v in (*self.inputs, *self.outputs)}
        self._device = {name: cuda.device_bytes(array.nbytes) for name, array in self._host.items()}
        for name, address in self._device.items():
            self._context.set_tensor_address(name, address)
        for _ in range(_WARM_UP):  # the first compiles kernels for this card, the second captures the graph
            self._run()
        if kept is not None:
            _write_aside(cache, bytes(memoryview(kept.serialize())))

    def infer(self, tensor: U8) -> RawOutputs:
        if self._picture is None:
            raise common.no_picture(self.inputs)
        np.copyto(self._host[self._picture.name], common.check_picture(tensor, self._picture))
        return self._run()

    def run(self, feeds: Mapping[str, Any]) -> RawOutputs:
        for name, array in common.check_feeds(feeds, self.inputs).items():
            np.copyto(self._host[name], array)
        return self._run()

    def close(self) -> None:
        """Free the card's memory; the session cannot be used afterwards."""
        self._context = self._engine = self._runtime = None
        self._host.clear()
        self._cuda.close()

    def _run(self) -> dict[str, AnyArray]:
        for view in self.inputs:
            self._cuda.to_device(self._device[view.name], self._host[view.name])
        if not self._context.execute_async_v3(self._cuda.stream):
            raise RequestError(
                "TensorRT for RTX could not run the engine", fix="avq doctor; the log says more"
            )
        for view in self.outputs:
            self._cuda.to_host(self._host[view.name], self._device[view.name])
        self._cuda.synchronize()
        return {view.name: self._host[view.name] for view in self.outputs}


def _runtime_config(trt: Any, engine: Any, cache: Path) -> tuple[Any, Any]:
    """Whole-graph capture and kept kernels, each where the library has it: (config, cache object or None)."""
    config = engine.create_runtime_config()
    graphs = getattr(trt, "CudaGraphStrategy", None)
    if graphs is not None and hasattr(config, "cuda_graph_strategy"):
        config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE
    kernels = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
    if kernels is not None and hasattr(config, "dynamic_shapes_kernel_specialization_strategy"):
        config.dynamic_shapes_kernel_specialization_strategy = kernels.EAGER  # no slow stand-ins, ever
    if not hasattr(config, "create_runtime_cache"):
        return config, None
    kept = config.create_runtime_cache()
    if cache.is_file():
        kept.deserialize(cache.read_bytes())  # the library refuses what is not of this card and version
    config.set_runtime_cache(kept)
    return config, kept


def _cache_path(trt: Any, data: bytes) -> Path:
    """$XDG_CACHE_HOME/avq/rtx, by engine and library version."""
    root = os.environ.get("XDG_CACHE_HOME")
    key = hashlib.sha256(data + str(trt.__version__).encode()).hexdigest()
    return (Path(root) if root else Path.home() / ".cache") / "avq" / "rtx" / f"{key}.kernels"


def _write_aside(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    Path(file.name).replace(path)


def _view(trt: Any, engine: Any, index: int) -> TensorView:
    name = engine.get_tensor_name(index)
    dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
    return TensorView(name, str(dtype), tuple(int(n) for n in engine.get_tensor_shape(name)))


def _is_input(trt: Any, engine: Any, index: int) -> bool:
    mode = engine.get_tensor_mode(engine.get_tensor_name(index))
    return bool(mode == trt.TensorIOMode.INPUT)


def _last(log: Any) -> str:
    lines = getattr(log, "errors", [])
    return " ".join(lines[-1].split())[:400] if lines else "no reason given"
