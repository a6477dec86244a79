"""Whose file it is: by its operators first, then by the producer it names."""

from __future__ import annotations

import numpy as np
import onnx

from avq.builder.lift.fakequant import is_fake_quantize
from avq.builder.lift.linear import DEQUANTIZE, QUANTIZE
from avq.builder.lift.qonnx import is_qonnx

_PRODUCERS = (
    ("onnx.quantize", "onnxruntime-qdq"),
    ("brevitas", "brevitas-qcdq"),
    ("nncf", "nncf-qdq"),
    ("modelopt", "modelopt-qdq"),
    ("vai", "vitisai-qdq"),
    ("quark", "vitisai-qdq"),
)


def dialect_of(model: onnx.ModelProto) -> str:
    """A name for people; reading does not depend on it."""
    nodes = model.graph.node
    if any(is_qonnx(n) for n in nodes):
        return "qonnx"
    if any(is_fake_quantize(n) for n in nodes):
        return "fakequantize"
    said = (
        f"{model.producer_name} {model.doc_string} {' '.join(p.value for p in model.metadata_props)}".lower()
    )
    for word, name in _PRODUCERS:
        if word in said:
            return name
    if any(n.domain == "trt" for n in nodes):
        return "tensorrt-qdq"
    if any(n.op_type.startswith(("Vitis", "Extended")) for n in nodes):
        return "vitisai-qdq"
    return _by_habit(model)


def _by_habit(model: onnx.ModelProto) -> str:
    """Q/DQ files without a name: integer weights behind a Clip, or powers of two throughout, or float weights."""
    graph = model.graph
    writers = {name: node for node in graph.node for name in node.output}
    stored = {
        t.name for t in graph.initializer if t.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    }
    pairs = [n for n in graph.node if n.op_type in DEQUANTIZE]
    if any(_op(writers, n.input[0]) == "Clip" for n in pairs):
        return "brevitas-qcdq"
    if any(n.input[0] in stored for n in pairs):
        return "onnxruntime-qdq"
    floats = {t.name for t in graph.initializer}
    if any(n.op_type in QUANTIZE and n.input[0] in floats for n in graph.node):
        return "vitisai-qdq" if _powers_of_two(graph) else "pytorch-qdq"
    return "qdq"


def _op(writers: dict[str, onnx.NodeProto], name: str) -> str:
    return writers[name].op_type if name in writers else ""


def _powers_of_two(graph: onnx.GraphProto) -> bool:
    arrays = {t.name: t for t in graph.initializer}
    for node in graph.node:
        for value in (a.t for a in node.attribute if node.op_type == "Constant" and a.name == "value"):
            arrays[node.output[0]] = value
    scales = {n.input[1] for n in graph.node if n.op_type in QUANTIZE and n.input[1] in arrays}
    values = [onnx.numpy_helper.to_array(arrays[s]) for s in scales]
    return bool(values) and all(np.all(np.frexp(v)[0] == 0.5) for v in values)
