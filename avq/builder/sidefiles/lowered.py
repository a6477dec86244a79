"""What a lowered model tells of its plan's tensors: which are constants, and which some operator reads in float."""

from __future__ import annotations

import onnx

from avq.builder.graph.view import view_of
from avq.builder.lower.model import HALF
from avq.builder.sidefiles.match import Names
from avq.builder.sidefiles.write_plan import Lowered
from avq.types import GraphView, QuantizationPlan

_QUANTIZERS = ("QuantizeLinear", "DynamicQuantizeLinear")


def look_at_lowered(model: bytes, plan: QuantizationPlan) -> Lowered:
    """The tensors of ``plan`` in the model that a build wrote with it; ``model`` is that ONNX file."""
    graph = view_of(_by_float_names(onnx.load_from_string(model)))
    tensors = {point.edge.tensor for point in plan.points}
    written = {name for node in graph.nodes for name in node.outputs} | {t.name for t in graph.inputs}
    picture = graph.inputs[0].name
    behind = Names(graph).find(picture) or picture
    return Lowered(
        weights=frozenset(tensors - written),
        partly=frozenset(t for t in tensors & written if _read_in_float(graph, t)),
        picture=None if behind == picture else (behind, picture),
    )


def _by_float_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with tensors in FP16 under the names they have in the plan; casts between the two fall out."""
    graph, kept, known = model.graph, [], set()
    for node in graph.node:
        node.input[:] = [name.removesuffix(HALF) for name in node.input]
        node.output[:] = [name.removesuffix(HALF) for name in node.output]
        if not (node.op_type == "Cast" and node.input == node.output):
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    constants = list(graph.initializer)
    del graph.initializer[:]
    for constant in constants:
        constant.name = constant.name.removesuffix(HALF)
        if constant.name not in known:
            graph.initializer.append(constant)
        known.add(constant.name)
    return model


def _read_in_float(graph: GraphView, tensor: str) -> bool:
    """Some reader is neither a quantizer nor the clipping that the writer put before one."""
    return any(
        node.op not in _QUANTIZERS and not (node.op == "Clip" and node.name.startswith(f"{tensor}/Clip"))
        for node, _ in graph.consumers(tensor)
        if not _dequantized(graph, tensor)
    )


def _dequantized(graph: GraphView, tensor: str) -> bool:
    """A quantized graph output carries its name behind the pair, not before it."""
    producer = graph.producer(tensor)
    return producer is not None and producer.op == "DequantizeLinear"
