"""How Q and DQ stand to each other and to the operators around them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto, TensorProto

from avq.builder.lint.graph import LABEL, MOVES, LintGraph, type_name
from avq.builder.lint.rule import ALL, CPU, TRT, Hit, error, warning

_INTEGER_OPS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")
_TRAINING = ("Quant", "BipolarQuant", "Trunc", "FakeQuantize")
_FLOATS = (TensorProto.UNDEFINED, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@error(7, TRT, "integers are used without DequantizeLinear", "put a DequantizeLinear behind every Q")
def _lonely_q(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.quantizers():
        others = sorted({r.op_type for r in _last_readers(graph, node) if r.op_type != "DequantizeLinear"})
        if others:
            yield node, f"read by {', '.join(others)}"


@error(
    8,
    TRT,
    "DequantizeLinear reads neither a QuantizeLinear nor a constant",
    "put QuantizeLinear right in front of it; clip in float before that",
)
def _lonely_dq(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.dequantizers():
        before = _first_producer(graph, node.input[0])
        if before is not None and before.op_type not in ("QuantizeLinear", "Constant"):
            yield node, f"fed by {before.op_type}"


@error(10, TRT, "integer operators cannot be read, only Q/DQ pairs", "export with Q/DQ pairs")
def _integer_ops(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.nodes:
        if node.op_type in _INTEGER_OPS or node.op_type.startswith(("QLinear", "QGemm", "QAttention")):
            yield node, f"{node.domain}:{node.op_type}".lstrip(":")


@warning(
    12,
    CPU,
    "signed activations are slow in onnxruntime on x86 and were measured wrong in OpenVINO",
    "lower with encoding u8: the same numbers, stored unsigned",
)
def _signed_on_cpu(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.quantizers():
        zero_point = graph.value(node, 2)
        if zero_point is not None and zero_point.dtype == np.int8 and graph.on_activation(node):
            yield node, "zero point is int8"
            return  # one line says it for the whole file


@error(
    20,
    ALL,
    "a quantizer of a training dialect is no operator any runtime knows",
    "import it: avq build --strategy qat",
)
def _training_dialect(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.nodes:
        if node.domain and node.op_type in _TRAINING:
            yield node, f"{node.domain}:{node.op_type}"


@error(27, TRT, "QuantizeLinear reads integers", "quantize float tensors only")
def _quantized_integers(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.quantizers():
        kind = graph.element(node.input[0])
        if kind not in _FLOATS:
            yield node, f"{node.input[0]} is {type_name(kind)}"


@warning(
    28,
    TRT,
    "Q and DQ of one pair have different scales: the tensor is rescaled",
    "give both the same scale; write a multiplication where rescaling is meant",
)
def _rescaled(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.dequantizers():
        quantizer = graph.quantizer_before(node)
        if quantizer is None or quantizer.input[1] == node.input[1]:
            continue
        first, second = graph.value(quantizer, 1), graph.value(node, 1)
        if first is not None and second is not None and not np.array_equal(first.ravel(), second.ravel()):
            yield node, f"{float(first.flat[0]):g} then {float(second.flat[0]):g}"


@warning(
    29,
    TRT,
    "the model takes or gives integers: whoever feeds it must know the scale",
    "end the model in float: DequantizeLinear behind the last Q, QuantizeLinear inside at the input",
)
def _integer_ports(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.quantizers():
        if node.output[0] in graph.outputs:
            yield node, f"output {node.output[0]}"
    for node in graph.dequantizers():
        if node.input[0] in graph.inputs and not graph.is_constant(node.input[0]):
            yield node, f"input {node.input[0]}"


@warning(
    30,
    TRT,
    "Q/DQ of onnxruntime's own domain are read by their name alone",
    "export with opset 21 or newer, whose own Q/DQ have what this domain was for",
)
def _foreign_pairs(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.nodes:
        if node.op_type in LABEL and node.domain not in ("", "ai.onnx"):
            yield node, f"{node.domain}:{node.op_type}"


def _last_readers(graph: LintGraph, quantizer: NodeProto) -> Iterator[NodeProto]:
    """Who reads the integers, looked for behind operators that only move them."""
    seen: set[str] = set()
    waiting = list(quantizer.output)
    while waiting:
        for reader in graph.readers.get(waiting.pop(), []):
            if reader.op_type not in MOVES:
                yield reader
            else:
                waiting.extend(name for name in reader.output if name not in seen)
                seen.update(reader.output)


def _first_producer(graph: LintGraph, name: str) -> NodeProto | None:
    """Who made the integers, looked for before operators that only move them; None for a port or a constant."""
    seen: set[str] = set()
    while name not in seen:
        seen.add(name)
        node = graph.producers.get(name)
        if node is None or graph.is_constant(name) or node.op_type not in MOVES or not node.input:
            return node
        name = node.input[0]
    return None
