"""Turn integer operators with static scales (onnxruntime's QOperator format) into Q/DQ form.

Each QLinear operator holds the scale and zero point of every integer tensor it reads and writes. The same operator in
float, behind a DequantizeLinear per input and in front of a QuantizeLinear, rounds at the same places. Operators that
move integers get the grid of their input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from avq.builder.graph.edit import (
    FreshNames,
    int_attribute,
    name_nodes,
    prune,
    replace_nodes,
    sort_nodes,
    undeclared_inputs,
)
from avq.builder.lift.findings import refusal
from avq.builder.lift.grid import Grid, dequantize, make_grid
from avq.types import AnyArray

_MOVERS = frozenset(
    {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "Slice", "Gather", "Identity"}
    | {"Resize", "Split", "DepthToSpace", "SpaceToDepth", "Expand", "Tile"}
)


@dataclass(frozen=True)
class _Grid:
    """Names of scale and zero point; channel axis of the tensor, where they are vectors."""

    scale: str
    zero_point: str
    axis: int = 1


@dataclass(frozen=True)
class _Form:
    """One integer operator in float.

    Attributes:
        op: the float operator.
        inputs: (tensor, its grid) per integer input, (tensor, None) per float one.
        grid: of the output; None for a float output.
        bias: 32-bit sums on the grid (input scale * weight scale).
        attributes: kept from the integer operator.
    """

    op: str
    inputs: Sequence[tuple[str, _Grid | None]]
    grid: _Grid | None
    bias: str = ""
    attributes: Sequence[str] = field(default_factory=tuple)


_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
_POOL = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")


def _conv(n: Sequence[str]) -> _Form:
    weight = _Grid(n[4], n[5], axis=0)
    return _Form("Conv", [(n[0], _Grid(n[1], n[2])), (n[3], weight)], _Grid(n[6], n[7]), n[8], _CONV)


def _matmul(n: Sequence[str]) -> _Form:
    return _Form("MatMul", [(n[0], _Grid(n[1], n[2])), (n[3], _Grid(n[4], n[5], axis=-1))], _Grid(n[6], n[7]))


def _gemm(n: Sequence[str], axis: int = 0) -> _Form:
    output = _Grid(n[7], n[8]) if n[7] else None
    inputs = [(n[0], _Grid(n[1], n[2])), (n[3], _Grid(n[4], n[5], axis=axis))]
    return _Form("Gemm", inputs, output, n[6], ("alpha", "transA", "transB"))


def _two(op: str) -> Callable[[Sequence[str]], _Form]:
    return lambda n: _Form(op, [(n[0], _Grid(n[1], n[2])), (n[3], _Grid(n[4], n[5]))], _Grid(n[6], n[7]))


def _one(op: str, *attributes: str) -> Callable[[Sequence[str]], _Form]:
    return lambda n: _Form(op, [(n[0], _Grid(n[1], n[2]))], _Grid(n[3], n[4]), "", attributes)


def _concat(n: Sequence[str]) -> _Form:
    parts = [name for name in n[2:] if name]
    inputs = [(parts[i], _Grid(parts[i + 1], parts[i + 2])) for i in range(0, len(parts) - 2, 3)]
    return _Form("Concat", inputs, _Grid(n[0], n[1]), "", ("axis",))


def _where(n: Sequence[str]) -> _Form:
    inputs = [(n[0], None), (n[1], _Grid(n[2], n[3])), (n[4], _Grid(n[5], n[6]))]
    return _Form("Where", inputs, _Grid(n[7], n[8]))


_FORMS: dict[str, Callable[[Sequence[str]], _Form]] = {
    "QLinearConv": _conv,
    "QLinearMatMul": _matmul,
    "QGemm": _gemm,
    "QLinearAdd": _two("Add"),
    "QLinearMul": _two("Mul"),
    "QLinearSigmoid": _one("Sigmoid"),
    "QLinearLeakyRelu": _one("LeakyRelu", "alpha"),
    "QLinearSoftmax": _one("Softmax", "axis"),
    "QLinearReduceMean": _one("ReduceMean", "axes", "keepdims"),
    "QLinearAveragePool": _one("AveragePool", *_POOL),
    "QLinearGlobalAveragePool": _one("GlobalAveragePool"),
    "QLinearConcat": _concat,
    "QLinearWhere": _where,
}
_INPUTS = 9


def has_integer_operators(model: onnx.ModelProto) -> bool:
    """Whether the file has operators of the QOperator format that can be turned into Q/DQ form."""
    return any(node.op_type in _FORMS for node in model.graph.node)


def in_qdq_form(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with Q/DQ pairs around float operators in place of integer operators.

    A file without integer operators comes back as it is. Operators that have no such form stay.

    Raises ModelError, AVQ-Q34, for a layout that float operators do not have.
    """
    if not has_integer_operators(model):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    name_nodes(copy.graph)
    sort_nodes(copy.graph)
    _Rewrite(copy.graph).run()
    return copy


def operator_parts(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Return the Q/DQ form of the integer operators alone, each on integers of the file.

    Returns:
        The parts: inputs are tensors of the file; and output of the parts -> tensor of the file.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    name_nodes(graph)
    sort_nodes(graph)
    rewrite = _Rewrite(graph, apart=True)
    rewrite.run()
    del graph.output[:], graph.input[:], graph.value_info[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in rewrite.results)
    graph.input.extend(onnx.ValueInfoProto(name=name) for name in undeclared_inputs(graph))
    sort_nodes(graph)
    prune(graph)
    return copy, rewrite.results


class _Rewrite:
    """Rewrites one graph; ``apart`` leaves the integer operators only, and cuts between them.

    Attributes:
        results: output of a part -> tensor of the file.
    """

    def __init__(self, graph: onnx.GraphProto, *, apart: bool = False) -> None:
        self.results: dict[str, str] = {}
        self._apart = apart
        self._graph, self._names = graph, FreshNames(graph)
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._grids: dict[str, _Grid] = {}
        self._nodes: list[onnx.NodeProto] = []

    def run(self) -> None:
        for node in self._graph.node:
            if node.op_type in _FORMS:
                self._integer_operator(node)
            elif node.op_type in _MOVERS and node.input[0] in self._grids:
                self._mover(node)
            else:
                if node.op_type == "QuantizeLinear" and len(node.input) == 3:
                    axis = int_attribute(node, "axis", 1)
                    self._grids[node.output[0]] = _Grid(node.input[1], node.input[2], axis)
                if not self._apart or node.op_type == "Constant":
                    self._nodes.append(node)
        replace_nodes(self._graph, self._nodes)
        if not self._apart:
            sort_nodes(self._graph)

    def _integer_operator(self, node: onnx.NodeProto) -> None:
        if int_attribute(node, "channels_last", 0):
            seen = f"{node.op_type} '{node.name}': channels last"
            raise refusal("AVQ-Q34", seen)
        inputs = [*node.input, *[""] * (_INPUTS - len(node.input))]
        form = _FORMS[node.op_type](inputs)
        if node.op_type == "QGemm" and not int_attribute(node, "transB", 0):
            form = _gemm(inputs, axis=1)
        reads = [name if grid is None else self._dequantized(name, grid) for name, grid in form.inputs]
        if form.bias:
            reads.append(self._bias(node, form))
        if form.grid is None and self._apart:
            return
        result = node.output[0] if form.grid is None else self._names.fresh(f"{node.output[0]}/real")
        made = helper.make_node(form.op, reads, [result], name=node.name)
        made.attribute.extend(a for a in node.attribute if a.name in form.attributes)
        self._nodes.append(made)
        if form.grid is not None:
            self._quantized(result, node.output[0], form.grid)

    def _mover(self, node: onnx.NodeProto) -> None:
        grid = self._grids[node.input[0]]
        made = onnx.NodeProto()
        made.CopyFrom(node)
        made.input[0] = self._dequantized(node.input[0], grid)
        self._nodes.append(made)
        for index, name in enumerate(node.output):
            if name:
                made.output[index] = self._names.fresh(f"{name}/real")
                self._quantized(made.output[index], name, grid)

    def _dequantized(self, integers: str, grid: _Grid) -> str:
        real = self._names.fresh(f"{integers}/real")
        if self._apart and integers in self._constants:
            scale, zero_point = self._array(grid.scale), self._array(grid.zero_point)
            return self._constant(real, integers, make_grid(scale, zero_point, axis=grid.axis))
        inputs = [name for name in (integers, grid.scale, grid.zero_point) if name]
        return self._add("DequantizeLinear", inputs, real, axis=self._axis(grid))

    def _constant(self, name: str, integers: str, grid: Grid) -> str:
        """A float constant: DequantizeLinear has no axis before opset 13."""
        tensor = numpy_helper.from_array(dequantize(self._array(integers), grid), name)
        self._graph.initializer.append(tensor)
        return name

    def _array(self, name: str) -> AnyArray:
        return numpy_helper.to_array(self._constants[name]) if name else np.zeros((), np.int64)

    def _axis(self, grid: _Grid) -> int | None:
        """None for one scale, which needs no axis."""
        scale = self._constants.get(grid.scale)
        return None if scale is not None and np.prod(scale.dims) == 1 else grid.axis

    def _quantized(self, real: str, integers: str, grid: _Grid) -> None:
        self._grids[integers] = grid
        if self._apart:
            tensor, integers = integers, self._names.fresh(f"{integers}/part")
            self.results[integers] = tensor
        inputs = [name for name in (real, grid.scale, grid.zero_point) if name]
        self._add("QuantizeLinear", inputs, integers, axis=self._axis(grid))

    def _bias(self, node: onnx.NodeProto, form: _Form) -> str:
        (_, data), (_, weight) = form.inputs
        assert data is not None and weight is not None
        real = self._names.fresh(f"{form.bias}/real")
        if self._apart and form.bias in self._constants:
            factor = self._array(data.scale) * self._array(weight.scale)
            return self._constant(real, form.bias, make_grid(factor, np.zeros((), np.int64), axis=0, bits=32))
        scale = self._add("Mul", [data.scale, weight.scale], self._names.fresh(f"{form.bias}/scale"))
        return self._add(
            "DequantizeLinear", [form.bias, scale], real, axis=None if self._axis(weight) is None else 0
        )

    def _add(self, op: str, inputs: list[str], output: str, axis: int | None = None) -> str:
        name = self._names.fresh(f"{output}/{op.lower()}")
        self._nodes.append(helper.make_node(op, inputs, [output], name=name, axis=axis))
        return output
