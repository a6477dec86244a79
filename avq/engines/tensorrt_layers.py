"""What an engine really runs, from TensorRT's inspector: precisions of layers, and those that stayed float.

The JSON changed: up to 10.x a tensor says "Format/Datatype" in one string, 11 has "Datatype" beside "Format".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from avq.engines import common
from avq.errors import ModelError

_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\x1e|\[ONNX Layer: |$)", re.DOTALL)
#: Spellings of a datatype, in the order they are looked for: "bfloat16" holds "float16" holds "float".
_TYPES = (
    ("bf16", ("bf16", "bfloat16")),
    ("f16", ("fp16", "half", "float16")),
    ("f32", ("fp32", "float")),
    ("int8", ("int8",)),
)


@dataclass(frozen=True, slots=True)
class EngineLayer:
    """One layer of an engine.

    Attributes:
        name: as TensorRT calls it.
        kind: "CaskConvolution", "Reformat", "gemm" ...
        nodes: names of the file's nodes in it.
        runs_in: type of its first input: "int8", "f16", "bf16", "f32"; '' when it does not say.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    runs_in: str

    @property
    def is_compute(self) -> bool:
        """A convolution or matrix product."""
        return common.is_compute(self.kind) or "matrixmultiply" in self.kind.lower()


def layers_of(trt: Any, engine: Any) -> tuple[EngineLayer, ...]:
    """The layers of a deserialized engine, in execution order."""
    return read_layers(
        engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    )


def read_layers(text: str) -> tuple[EngineLayer, ...]:
    """The inspector's JSON. An engine that was not built with detailed verbosity gives names only."""
    try:
        listed = json.loads(text).get("Layers", [])
    except (ValueError, AttributeError):
        return ()
    return tuple(_layer(item) for item in listed)


def _layer(item: Any) -> EngineLayer:
    if not isinstance(item, dict):
        return EngineLayer(str(item), "", tuple(str(item).split(" + ")), "")
    name = str(item.get("Name", ""))
    nodes = tuple(_NODE.findall(str(item.get("Metadata", "")))) or tuple(name.split(" + "))
    kind = str(item.get("ParameterType") or item.get("LayerType") or "")
    if "conv" in str(item.get("LayerType", "")).lower() or "gemm" in str(item.get("LayerType", "")).lower():
        kind = str(item["LayerType"])
    inputs = item.get("Inputs") or []
    return EngineLayer(name, kind, nodes, _type_of(inputs[0]) if inputs else "")


def _type_of(tensor: Any) -> str:
    if not isinstance(tensor, dict):
        return ""
    datatype = str(tensor.get("Datatype") or tensor.get("Format/Datatype") or "").lower()
    return next((name for name, words in _TYPES if any(word in datatype for word in words)), "")


def precision_of(layers: Iterable[EngineLayer], otherwise: str) -> str:
    """What the convolutions and matrix products run in, "int8+f16"; ``otherwise`` when no layer tells."""
    types = {layer.runs_in for layer in layers if layer.is_compute and layer.runs_in}
    if not types:
        return otherwise
    floats = [name for name in ("f16", "bf16", "f32") if name in types]
    return common.precision_name("int8" in types, floats[0] if floats else "f16")


def left_float(layers: Sequence[EngineLayer], wanted: Mapping[str, str]) -> tuple[str, ...]:
    """Names of compute layers that run in FP32 although every node in them was to run in INT8 or FP16.

    ``wanted`` is the plan: node name -> "int8", "fp16", "fp32".
    """
    return tuple(
        layer.name
        for layer in layers
        if layer.is_compute and layer.runs_in == "f32" and _plans(layer, wanted) <= {"int8", "fp16"}
    )


def not_in_int8(layers: Sequence[EngineLayer], wanted: Mapping[str, str]) -> tuple[str, ...]:
    """Names of compute layers planned in INT8 that run in FP16: right, and slower than planned."""
    return tuple(
        layer.name
        for layer in layers
        if layer.is_compute and layer.runs_in == "f16" and "int8" in _plans(layer, wanted)
    )


def _plans(layer: EngineLayer, wanted: Mapping[str, str]) -> set[str]:
    """Precisions its nodes were to have; a layer of unknown nodes may run in anything."""
    return {wanted[node] for node in layer.nodes if node in wanted} or {"fp32"}


def require_planned(layers: Sequence[EngineLayer], wanted: Mapping[str, str]) -> None:
    """ModelError, naming them, when layers silently stayed in FP32."""
    names = left_float(layers, wanted)
    if names:
        raise ModelError(
            f"{len(names)} layers stayed in FP32 although the plan has them in INT8 or FP16",
            seen=", ".join(names[:8]) + (" ..." if len(names) > 8 else ""),
            fix="leave them float in the plan (avq_keep_float), or report it: an FP32 layer costs what INT8 gains",
        )
