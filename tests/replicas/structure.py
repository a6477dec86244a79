"""Where Q/DQ stands in a lowered model, read from the ONNX file alone: no name and no decoder of avq is asked."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import numpy_helper

QDQ = ("QuantizeLinear", "DequantizeLinear")
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FIXED_PROJECTION = 64  # weights; an expectation over bins has at most these


def learned_layers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Convolutions and matrix products with weights in the file, float or quantized."""
    weights = {w.name: numpy_helper.to_array(w).size for w in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in QDQ and node.input[0] in weights:
            weights[node.output[0]] = weights[node.input[0]]
    return [
        node
        for node in model.graph.node
        if node.op_type in _LAYERS and any(weights.get(n, 0) > _FIXED_PROJECTION for n in node.input[:2])
    ]


def downstream(model: onnx.ModelProto, started: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Every node that reads, however indirectly, an output of ``started``; without them."""
    written = {name for node in started for name in node.output}
    found = []
    for node in model.graph.node:  # ONNX keeps topological order
        if written.intersection(node.input):
            found.append(node)
            written.update(node.output)
    return found


def last_layers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Learned layers that no other learned layer reads from: the head's bare ones."""
    layers = learned_layers(model)
    weighted = {id(node) for node in layers}
    return [node for node in layers if not any(id(n) in weighted for n in downstream(model, [node]))]


def quantized_at_or_after(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> list[str]:
    """What breaks the rule: Q/DQ after the nodes, or a DQ that feeds one of them."""
    chosen = list(nodes)
    producer = {name: node for node in model.graph.node for name in node.output}
    wrong = [f"{n.op_type} after a last layer" for n in downstream(model, chosen) if n.op_type in QDQ]
    for node in chosen:
        feeding = [producer[name].op_type for name in node.input if name in producer]
        wrong += [f"{op} feeds a last {node.op_type}" for op in feeding if op in QDQ]
    return wrong
