"""Rules on Q/DQ pairs, and on integers that enter both inputs of a convolution or matrix product.

The builder searches an integer kernel for such operators. It moves DequantizeLinear behind operators that only move
or scale values, so integers reach further than the file shows. 4-bit integers and scales per block are meant for
float data; with integer data only some shapes build, which were found by builds with TensorRT for RTX 1.7.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto, TensorProto

from avq.builder.graph.edit import int_attribute
from avq.builder.lint.graph import GRAPH_OUTPUT, LABEL, MOVES, LintGraph, grid_type, last_readers, type_name
from avq.builder.lint.rule import ALL, CPU, TRT, Hit, error, warning

_SWAPS = "Pad Dropout Where TopK Neg Abs GatherElements GatherND GlobalMaxPool Max Min ReduceMax ReduceMin"
_SWAPPED = MOVES | frozenset(_SWAPS.split())
_ALL_INPUTS = frozenset({"Concat", "Max", "Min"})
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class _Side:
    """Integers that enter one input.

    Attributes:
        kinds: their element types; empty for floats.
        scales: element types of their scales.
        several: more than one scale per tensor.
        blocks: more than one scale along one axis, and along another.
        moved: there are operators between DequantizeLinear and the reader.
        widened: 16-bit float scales and a float32 result, for which there is no integer kernel.
    """

    kinds: frozenset[int] = frozenset()
    scales: frozenset[int] = frozenset()
    several: bool = False
    blocks: bool = False
    moved: bool = False
    widened: bool = False


@error(
    49,
    TRT,
    "no kernel multiplies these integers: both inputs are quantized",
    "keep data float for 4-bit weights and scales per block; else use 8 bits and scales of one float type",
)
def _no_kernel(graph: LintGraph) -> Iterator[Hit]:
    finder = _Finder(graph)
    for node in (n for n in graph.of_type("Conv", "ConvTranspose", "MatMul", "Gemm") if len(n.input) > 1):
        data, weights = (finder.side(name) for name in node.input[:2])
        if not data.kinds or not weights.kinds:
            continue
        if node.op_type in ("MatMul", "Gemm"):
            why = _why_no_product(graph, node, data, weights)
        else:
            why = _why_not_convolved(node, data, weights)
        if why:
            yield node, f"{_types_text(data)} and {_types_text(weights)}: {why}"


def _why_not_convolved(node: NodeProto, data: _Side, weights: _Side) -> str:
    int4 = [TensorProto.INT4 in side.kinds for side in (data, weights)]
    refused = all(int4) if node.op_type == "ConvTranspose" else any(int4)
    in_float = any(side.blocks or side.widened for side in (data, weights))
    return "4 bits" if refused and not in_float else ""


def _why_no_product(graph: LintGraph, node: NodeProto, data: _Side, weights: _Side) -> str:
    shapes = [graph.shape(name) for name in node.input[:2]]
    ranks = {len(shape) for shape in shapes if shape is not None}
    repeated = len(ranks) > 1  # the smaller one is broadcast
    data = replace(data, moved=repeated or data.moved or bool(int_attribute(node, "transA", 0)))
    weights = replace(weights, moved=repeated or weights.moved or bool(int_attribute(node, "transB", 0)))
    if data.blocks or weights.blocks:
        return _why_no_blocks(data, weights)
    if data.widened or weights.widened:
        return ""
    kinds = data.kinds | weights.kinds
    if not (data.several or weights.several):
        return "two widths" if TensorProto.INT4 in kinds and len(kinds) > 1 else ""
    if weights.moved and data.scales != weights.scales:
        return "scales of different float types"
    int4 = repeated and TensorProto.INT4 in kinds and min(ranks) > 2
    return f"4 bits in a broadcast tensor of {min(ranks)} axes" if int4 else ""


def _why_no_blocks(data: _Side, weights: _Side) -> str:
    if any(side.blocks and side.moved and not side.widened for side in (data, weights)):
        return "scales per block of a broadcast or moved tensor"
    unlike = data.widened and weights.blocks and not weights.widened
    return "scales per block with data scales of another float type" if unlike else ""


def _types_text(side: _Side) -> str:
    return ", ".join(sorted(type_name(kind) for kind in side.kinds))


class _Finder:
    """Finds the integers behind tensors, each once."""

    def __init__(self, graph: LintGraph) -> None:
        self._graph = graph
        self._known: dict[tuple[str, bool], _Side] = {}

    def side(self, name: str, *, narrowed: bool = False) -> _Side:
        """Integers behind ``name``; ``narrowed``: a cast to 16 bits follows, which cancels one to float32."""
        key = (name, narrowed)
        if key not in self._known:
            self._known[key] = _Side()  # ends a cycle
            self._known[key] = self._find(name, narrowed=narrowed)
        return self._known[key]

    def _find(self, name: str, *, narrowed: bool) -> _Side:
        node = self._graph.producers.get(name)
        if node is None:
            return _Side()
        if node.op_type == "DequantizeLinear":
            return self._dequantized(node)
        narrowed = narrowed or (node.op_type == "Cast" and self._graph.element(name) in _HALVES)
        sides = [self.side(source, narrowed=narrowed) for source in self._sources(node, narrowed=narrowed)]
        if not sides or not all(side.kinds for side in sides):
            return _Side()
        return _Side(
            frozenset().union(*(side.kinds for side in sides)),
            frozenset().union(*(side.scales for side in sides)),
            any(side.several for side in sides),
            any(side.blocks for side in sides),
            moved=True,
            widened=any(side.widened for side in sides),
        )

    def _dequantized(self, node: NodeProto) -> _Side:
        scale, kind = self._graph.shape(node.input[1]), grid_type(self._graph, node)
        if scale is None or not kind:
            return _Side()
        before, after = (self._graph.element(name) for name in (node.input[1], node.output[0]))
        return _Side(
            frozenset({kind}),
            frozenset({before}),
            several=math.prod(size or 0 for size in scale) > 1,
            blocks=sum(size != 1 for size in scale) > 1,
            widened=before in _HALVES and after == TensorProto.FLOAT,
        )

    def _sources(self, node: NodeProto, *, narrowed: bool) -> list[str]:
        """Inputs that the builder moves DequantizeLinear past; empty for other operators."""
        if node.op_type == "Cast":
            before, after = (self._graph.element(name) for name in (node.input[0], node.output[0]))
            kept = before == after or (before == TensorProto.FLOAT and after in _HALVES)
            cancelled = narrowed and (before, after) == (TensorProto.FLOAT16, TensorProto.FLOAT)
            return [node.input[0]] if kept or cancelled else []
        if node.op_type in ("Mul", "Div") and len(node.input) == 2:
            data = [name for name in node.input if not self._graph.is_constant(name)]
            factors = [self._graph.shape(name) for name in node.input if self._graph.is_constant(name)]
            scalar = len(data) == 1 and factors[0] is not None and math.prod(d or 0 for d in factors[0]) == 1
            return data if scalar else []
        if node.op_type not in _SWAPPED:
            return []
        if node.op_type in _ALL_INPUTS:
            return list(node.input)
        return list(node.input[1:3]) if node.op_type == "Where" else list(node.input[:1])


# Q/DQ pairs.

_INTEGER_OPS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")
_TRAINING = ("Quant", "BipolarQuant", "Trunc", "FakeQuantize")
_FLOATS = (TensorProto.UNDEFINED, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@error(7, TRT, "QuantizeLinear without DequantizeLinear", "put a DequantizeLinear after every QuantizeLinear")
def _q_without_dq(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.quantizers():
        readers = last_readers(graph, node.output[0], through_any_input=True)
        others = sorted({r.op_type for r in readers} - {"DequantizeLinear", GRAPH_OUTPUT})
        if others:
            yield node, f"read by {', '.join(others)}"


@error(
    8,
    TRT,
    "DequantizeLinear reads neither a QuantizeLinear nor a constant",
    "put QuantizeLinear directly in front of it, and Clip before that",
)
def _dq_without_q(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.dequantizers():
        before = _first_producer(graph, node.input[0])
        if before is not None and before.op_type not in ("QuantizeLinear", "Constant"):
            yield node, f"reads {before.op_type}"


@error(10, TRT, "TensorRT cannot read integer operators", "export with Q/DQ pairs")
def _integer_ops(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.nodes:
        if node.op_type in _INTEGER_OPS or node.op_type.startswith(("QLinear", "QGemm", "QAttention")):
            yield node, f"{node.domain}:{node.op_type}".lstrip(":")


@warning(
    12,
    CPU,
    "signed activations are slow in onnxruntime on x86 and were measured wrong in OpenVINO",
    "write it with encoding u8: the same numbers, stored unsigned",
)
def _signed_on_cpu(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.quantizers():
        zero_point = graph.value(node, 2)
        if zero_point is not None and zero_point.dtype == np.int8 and graph.on_activation(node):
            yield node, "zero point is int8"
            return  # one finding per file


@error(
    20,
    ALL,
    "no runtime supports this quantizer of a training tool",
    "import it: avq build --strategy qat",
)
def _training_dialect(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.nodes:
        if node.domain and node.op_type in _TRAINING:
            yield node, f"{node.domain}:{node.op_type}"


@error(27, TRT, "QuantizeLinear reads an integer tensor", "quantize float tensors only")
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
    "an input or output of the model is an integer tensor, whose scale is not in the interface",
    "use float inputs and outputs: add DequantizeLinear at the output, QuantizeLinear at the input",
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
    "Q/DQ of onnxruntime's domain are read by name only",
    "export with opset 21 or newer, whose Q/DQ have the same types",
)
def _foreign_pairs(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.nodes:
        if node.op_type in LABEL and node.domain not in ("", "ai.onnx"):
            yield node, f"{node.domain}:{node.op_type}"


def _first_producer(graph: LintGraph, name: str) -> NodeProto | None:
    """Producer of the integers, in front of operators in `MOVES`; None for an input or a constant."""
    seen: set[str] = set()
    while name not in seen:
        seen.add(name)
        node = graph.producers.get(name)
        if node is None or graph.is_constant(name) or node.op_type not in MOVES or not node.input:
            return node
        name = node.input[0]
    return None
