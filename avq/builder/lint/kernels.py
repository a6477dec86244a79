"""Integers on both sides of a convolution or matrix product, where the builder looks for an integer kernel.

It moves DequantizeLinear behind operators that only move values or scale them, so integers reach further than the
file says. 4-bit integers and scales per block are made for float data; beside integers they build in some shapes
only: those found by building them with TensorRT for RTX 1.7.
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
    """Integers that reach one input.

    Attributes:
        kinds: their element types; empty where floats come.
        scales: element types of their scales.
        several: more than one scale per tensor.
        blocks: more than one scale along one axis, and along another.
        moved: operators stand between DequantizeLinear and the reader.
        widened: 16-bit scales and a float32 result, for which there is no integer kernel.
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
    "integers on both sides that no kernel takes together",
    "float data beside weights of 4 bits or with scales per block; else 8 bits, scales of one float type",
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
            yield node, f"{_said(data)} and {_said(weights)}: {why}"


def _why_not_convolved(node: NodeProto, data: _Side, weights: _Side) -> str:
    four_bits = [TensorProto.INT4 in side.kinds for side in (data, weights)]
    refused = all(four_bits) if node.op_type == "ConvTranspose" else any(four_bits)
    in_float = any(side.blocks or side.widened for side in (data, weights))
    return "4 bits" if refused and not in_float else ""


def _why_no_product(graph: LintGraph, node: NodeProto, data: _Side, weights: _Side) -> str:
    shapes = [graph.shape(name) for name in node.input[:2]]
    ranks = {len(shape) for shape in shapes if shape is not None}
    spread = len(ranks) > 1  # the smaller one is repeated
    data = replace(data, moved=spread or data.moved or bool(int_attribute(node, "transA", 0)))
    weights = replace(weights, moved=spread or weights.moved or bool(int_attribute(node, "transB", 0)))
    if data.blocks or weights.blocks:
        return _why_no_blocks(data, weights)
    if data.widened or weights.widened:
        return ""
    kinds = data.kinds | weights.kinds
    if not (data.several or weights.several):
        return "two widths" if TensorProto.INT4 in kinds and len(kinds) > 1 else ""
    if weights.moved and data.scales != weights.scales:
        return "scales of different float types"
    repeated = spread and TensorProto.INT4 in kinds and min(ranks) > 2
    return f"4 bits in a tensor of {min(ranks)} axes that is repeated" if repeated else ""


def _why_no_blocks(data: _Side, weights: _Side) -> str:
    if any(side.blocks and side.moved and not side.widened for side in (data, weights)):
        return "scales per block of a tensor that is repeated or moved"
    beside = data.widened and weights.blocks and not weights.widened
    return "scales per block beside scales of another float type" if beside else ""


def _said(side: _Side) -> str:
    return ", ".join(sorted(type_name(kind) for kind in side.kinds))


class _Finder:
    """Looks for the integers behind tensors; each is looked at once."""

    def __init__(self, graph: LintGraph) -> None:
        self._graph = graph
        self._known: dict[tuple[str, bool], _Side] = {}

    def side(self, name: str, *, narrowed: bool = False) -> _Side:
        """``narrowed``: a cast to 16 bits follows, which swallows one to float32 before it."""
        key = (name, narrowed)
        if key not in self._known:
            self._known[key] = _Side()  # of a cycle
            self._known[key] = self._looked_for(name, narrowed=narrowed)
        return self._known[key]

    def _looked_for(self, name: str, *, narrowed: bool) -> _Side:
        node = self._graph.producers.get(name)
        if node is None:
            return _Side()
        if node.op_type == "DequantizeLinear":
            return self._dequantized(node)
        narrowed = narrowed or (node.op_type == "Cast" and self._graph.element(name) in _HALVES)
        found = [self.side(source, narrowed=narrowed) for source in self._sources(node, narrowed=narrowed)]
        if not found or not all(side.kinds for side in found):
            return _Side()
        return _Side(
            frozenset().union(*(side.kinds for side in found)),
            frozenset().union(*(side.scales for side in found)),
            any(side.several for side in found),
            any(side.blocks for side in found),
            moved=True,
            widened=any(side.widened for side in found),
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
        """What is handed on; nothing where the builder does not swap."""
        if node.op_type == "Cast":
            before, after = (self._graph.element(name) for name in (node.input[0], node.output[0]))
            kept = before == after or (before == TensorProto.FLOAT and after in _HALVES)
            swallowed = narrowed and (before, after) == (TensorProto.FLOAT16, TensorProto.FLOAT)
            return [node.input[0]] if kept or swallowed else []
        if node.op_type in ("Mul", "Div") and len(node.input) == 2:
            data = [name for name in node.input if not self._graph.is_constant(name)]
            factors = [self._graph.shape(name) for name in node.input if self._graph.is_constant(name)]
            one = len(data) == 1 and factors[0] is not None and math.prod(d or 0 for d in factors[0]) == 1
            return data if one else []
        if node.op_type not in _SWAPPED:
            return []
        if node.op_type in _ALL_INPUTS:
            return list(node.input)
        return list(node.input[1:3]) if node.op_type == "Where" else list(node.input[:1])


# How Q and DQ stand to each other and to the operators around them.

_INTEGER_OPS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")
_TRAINING = ("Quant", "BipolarQuant", "Trunc", "FakeQuantize")
_FLOATS = (TensorProto.UNDEFINED, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@error(7, TRT, "integers are used without DequantizeLinear", "put a DequantizeLinear behind every Q")
def _lonely_q(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.quantizers():
        readers = last_readers(graph, node.output[0], through_any_input=True)
        others = sorted({r.op_type for r in readers} - {"DequantizeLinear", GRAPH_OUTPUT})
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
