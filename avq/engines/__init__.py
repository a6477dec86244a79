"""Runtimes: one vendor per file, each imported when a model is opened or its status is read."""

from __future__ import annotations

from collections.abc import Iterable

from avq.engines.onnxruntime import OnnxRuntimeEngine
from avq.engines.openvino import OpenVinoEngine
from avq.engines.tensorrt import TensorRtEngine
from avq.engines.tensorrt_rtx import TensorRtRtxEngine
from avq.errors import RequestError, nearest
from avq.hookspecs import Engine, hookimpl


def builtin_engines() -> tuple[Engine, ...]:
    """The runtimes avq brings, whether installed here or not; imports no vendor library."""
    return (OnnxRuntimeEngine(), OpenVinoEngine(), TensorRtEngine(), TensorRtRtxEngine())


def engine_by_name(name: str, engines: Iterable[Engine] | None = None) -> Engine:
    """The engine called ``name`` among ``engines`` (the built-in ones when None).

    Raises RequestError with the nearest name when there is none.
    """
    table = {engine.name: engine for engine in (builtin_engines() if engines is None else engines)}
    if name not in table:
        raise RequestError(f"there is no engine '{name}'", fix=nearest(name, table))
    return table[name]


@hookimpl
def avq_register_engines() -> tuple[Engine, ...]:
    return builtin_engines()


__all__ = ["avq_register_engines", "builtin_engines", "engine_by_name"]
