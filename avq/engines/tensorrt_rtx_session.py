"""Running an RTX engine: checked before it is read, kernels compiled once and kept, one CUDA graph per frame.

Written to the interface of the installed library's classes. No machine that avq was developed on has a card that
TensorRT for RTX runs on, so nothing of this file but its refusals has been run.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from avq.engines.cuda import open_cuda
from avq.engines.gpu_session import GpuSession
from avq.engines.kept import cache_folder, keep
from avq.engines.tensorrt_log import last_words, no_collection
from avq.errors import BundleError


@no_collection()
def open_engine(trt: Any, log: Any, data: bytes, *, precision: str) -> GpuSession:
    """A session of a serialized engine, warmed up.

    Raises MachineError where there is no card, BundleError for an engine that is not for this machine.
    """
    runtime = trt.Runtime(log)
    runtime.engine_host_code_allowed = False
    _require_valid(trt, runtime, data)
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise BundleError(
            "TensorRT for RTX cannot load the engine",
            seen=last_words(log) or "no reason given",
            fix="compile it on this machine",
        )
    cache = _cache_path(trt, data)
    config, kept = _runtime_config(trt, engine, cache)
    context = engine.create_execution_context(config)
    # The library captures the graph of a frame itself: a second one around it would hold nothing.
    session = GpuSession(NAME, trt, runtime, engine, context, open_cuda(), precision=precision, graph=False)
    if kept is not None:
        keep(cache, bytes(memoryview(kept.serialize())))
    return session


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
    key = hashlib.sha256(data + str(trt.__version__).encode()).hexdigest()
    return cache_folder("rtx") / f"{key}.kernels"
