"""Read files whose activations are quantized at run time, as ``quantize_dynamic`` writes them.

DynamicQuantizeLinear computes the scale of an activation for each picture; ConvInteger and MatMulInteger multiply
integers; Cast and Mul bring the sums back to real numbers. The same in float is one Conv or MatMul of the activation
with the weights (integer - zero point) * scale. Nothing is lost but the rounding of activations.

com.microsoft's DynamicQuantizeMatMul and MatMulIntegerToFloat hold the scales themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

from avq.builder.graph.edit import fresh_name, name_nodes, prune, replace_nodes, sort_nodes, undeclared_inputs
from avq.builder.lift.findings import refusal
from avq.builder.lift.grid import Grid, dequantize, make_grid
from avq.builder.lift.reading import QuantizedFile
from avq.types import AnyArray

#: How the result writes weights: as float constants, or as integers behind a DequantizeLinear.
Form = Literal["float", "weights"]
#: Dialect of an import that has grids for weights only.
RUN_TIME_DIALECT = "run-time-quantized"

FLOAT, UINT8 = TensorProto.FLOAT, TensorProto.UINT8
_QUANTIZE = "DynamicQuantizeLinear"
_PRODUCTS = {"ConvInteger": "Conv", "MatMulInteger": "MatMul"}
_WITH_SCALES = frozenset({"DynamicQuantizeMatMul", "MatMulIntegerToFloat"})
_UNREADABLE = frozenset({"DynamicQuantizeLSTM", "QAttention", "MatMulNBits"})
_BITS = {np.dtype(np.int8): True, np.dtype(np.uint8): False}
#: Operators that move integers and do not change them.
_MOVERS = frozenset(
    {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "Slice", "Gather", "Identity"}
)
_SCALE_MOVERS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Identity", "Cast"})


def is_dynamic(model: onnx.ModelProto) -> bool:
    """Whether the file quantizes activations at run time."""
    ops = {node.op_type for node in model.graph.node}
    return bool(ops & ({_QUANTIZE} | _WITH_SCALES | set(_PRODUCTS)))


def lift_dynamic(model: onnx.ModelProto, form: Form = "float") -> onnx.ModelProto:
    """Return a copy whose weighted operators compute in float; ``model`` is left as it is.

    Args:
        model: a file with DynamicQuantizeLinear, ConvInteger or MatMulInteger.
        form: how weights and activations are written.

    Returns:
        The copy; names of inputs, outputs and float tensors are those of the file.

    Raises:
        ModelError: AVQ-Q34, an integer operator whose result does not come back to real numbers.
    """
    reading = QuantizedFile.of(model)
    sort_nodes(reading.proto.graph)
    reading.refresh()
    _Lift(reading, form).rewrite()
    left = [f"{n.op_type} '{n.name}'" for n in reading.proto.graph.node if _is_integer(n)]
    if left:
        raise refusal("AVQ-Q34", left)
    return reading.proto


def _is_integer(node: onnx.NodeProto) -> bool:
    return node.op_type == _QUANTIZE or node.op_type in _PRODUCTS or node.op_type in _WITH_SCALES


def lifted_products(source: onnx.ModelProto) -> onnx.ModelProto:
    """The products of the file alone, in float, on the activations that the file itself rounded.

    Its inputs are tensors of the file: rounded activations with scale and zero point; its outputs are the real sums
    under the names that the file gives them. Both computed from the same tensors, they differ by float rounding only.

    Raises ModelError as ``lift_dynamic`` does.
    """
    reading = QuantizedFile.of(source)
    sort_nodes(reading.proto.graph)
    reading.refresh()
    _Lift(reading, "float", rounded=True).rewrite(products_only=True)
    graph = reading.proto.graph
    used = {name for node in graph.node for name in node.input}
    kept = [value for value in graph.input if value.name in used]
    del graph.input[:], graph.value_info[:]
    graph.input.extend(kept)
    return reading.proto


@dataclass(frozen=True)
class _Activation:
    """An activation that the file quantizes at run time: float, integers, and their scale and zero point."""

    real: str
    integers: str
    scale: str
    zero_point: str


@dataclass(frozen=True)
class _Weight:
    """Stored integers of a weight, and their zero points."""

    integers: AnyArray
    zero_point: AnyArray
    name: str


class _Lift:
    def __init__(self, reading: QuantizedFile, form: Form, *, rounded: bool = False) -> None:
        self._reading, self._form, self._rounded = reading, form, rounded
        self._graph = reading.proto.graph
        self._activations: dict[str, _Activation] = {}
        self._scales: set[str] = set()
        self._added: list[onnx.NodeProto] = []
        self._sums: list[str] = []
        self._replaced: set[int] = set()

    def rewrite(self, *, products_only: bool = False) -> None:
        for node in self._reading.nodes:
            self._read(node)
        kept = [node for node in self._graph.node if id(node) not in self._replaced]
        if products_only:
            kept = [node for node in kept if node.op_type in _MOVERS]
            del self._graph.output[:]
            self._graph.output.extend(helper.make_tensor_value_info(n, FLOAT, None) for n in self._sums)
        replace_nodes(self._graph, [*kept, *self._added])
        name_nodes(self._graph)
        if products_only:
            self._declare_inputs()
        sort_nodes(self._graph)
        prune(self._graph)

    def _declare_inputs(self) -> None:
        integers = {name for a in self._activations.values() for name in (a.integers, a.zero_point)}
        names = undeclared_inputs(self._graph)
        del self._graph.input[:]
        self._graph.input.extend(
            helper.make_tensor_value_info(name, UINT8 if name in integers else FLOAT, None) for name in names
        )

    def _read(self, node: onnx.NodeProto) -> None:
        op = node.op_type
        if op == _QUANTIZE:
            integers, scale, zero_point = node.output
            self._activations[integers] = _Activation(node.input[0], integers, scale, zero_point)
            self._scales.add(scale)
        elif op in _MOVERS and node.input[0] in self._activations:
            self._move(node)
        elif op == "DequantizeLinear" and node.input[0] in self._activations and not self._rounded:
            self._dequantize(node)
        elif op in _PRODUCTS:
            self._product(node)
        elif op in _WITH_SCALES:
            self._product_with_scales(node)
        elif op in _UNREADABLE:
            raise self._refused(node)

    def _refused(self, node: onnx.NodeProto, why: str = "") -> Exception:
        return refusal("AVQ-Q34", f"{node.op_type} '{node.name}'{f': {why}' if why else ''}")

    def _move(self, node: onnx.NodeProto) -> None:
        """The same move of the float activation; the integers' is pruned where nothing reads it."""
        before, result = self._activations[node.input[0]], node.output[0]
        if len(node.output) > 1 and node.output[1]:
            return
        real = self._fresh(f"{result}/real")
        moved = onnx.NodeProto()
        moved.CopyFrom(node)
        moved.name, moved.input[0], moved.output[0] = real, before.real, real
        self._added.append(moved)
        self._activations[result] = _Activation(real, result, before.scale, before.zero_point)

    def _dequantize(self, node: onnx.NodeProto) -> None:
        activation = self._activations[node.input[0]]
        if list(node.input[1:3]) != [activation.scale, activation.zero_point]:
            raise self._refused(node, "another scale than that of its integers")
        self._replaced.add(id(node))
        self._add("Identity", [activation.real], node.output[0])

    # Products whose sums are scaled by later nodes.

    def _product(self, node: onnx.NodeProto) -> None:
        sides = [self._side(node, index, index + 2) for index in (0, 1)]
        needed = Counter(side.scale for side in sides if isinstance(side, _Activation))
        if not needed:
            raise self._refused(node, "its integers are not computed at run time")
        for result, factor, last in self._results(node, node.output[0], needed, np.ones((), np.float32)):
            self._replaced.add(id(last))
            self._write(_PRODUCTS[node.op_type], sides, factor, result, node)

    def _side(self, node: onnx.NodeProto, index: int, zero_index: int) -> _Activation | _Weight:
        name = node.input[index]
        zero = node.input[zero_index] if len(node.input) > zero_index else ""
        activation = self._activations.get(name)
        if activation is not None:
            if zero != activation.zero_point:
                raise self._refused(node, f"another zero point than that of '{name}'")
            return activation
        return self._weight(node, name, zero)

    def _weight(self, node: onnx.NodeProto, name: str, zero: str) -> _Weight:
        integers = self._reading.array(name)
        zero_point = self._reading.array(zero) if zero else np.zeros((), np.int64)
        if integers is None or zero_point is None or integers.dtype not in _BITS:
            raise self._refused(node, f"'{name}' has no constant 8-bit integers")
        return _Weight(integers, zero_point, name)

    def _results(
        self, product: onnx.NodeProto, name: str, needed: Counter[str], factor: AnyArray
    ) -> list[tuple[str, AnyArray, onnx.NodeProto]]:
        """(real tensor, constant factor, node that writes it) behind the sums ``name``."""
        readers = self._reading.readers.get(name, [])
        if not readers or name in self._reading.outputs:
            raise self._refused(product, f"nothing scales its sums '{name}'")
        found = []
        for reader in readers:
            if reader.op_type == "Cast":
                found += self._results(product, reader.output[0], needed, factor)
                continue
            scales, constant = self._factors(reader, name)
            left = needed - Counter(scales)
            if constant is None or sum(needed.values()) - sum(left.values()) != len(scales):
                raise self._refused(product, f"'{reader.name}' ({reader.op_type}) reads its sums unscaled")
            combined = np.asarray(factor * constant, np.float32)
            if left:
                found += self._results(product, reader.output[0], left, combined)
            else:
                found.append(self._last(reader, combined))
        return found

    def _last(self, node: onnx.NodeProto, factor: AnyArray) -> tuple[str, AnyArray, onnx.NodeProto]:
        """A weight scale in a Mul of its own belongs to the weight."""
        result = node.output[0]
        readers = self._reading.readers.get(result, [])
        if factor.size == 1 and factor == 1.0 and len(readers) == 1 and result not in self._reading.outputs:
            scales, constant = self._factors(readers[0], result)
            if constant is not None and not scales:
                return readers[0].output[0], constant, readers[0]
        return result, factor, node

    def _factors(self, node: onnx.NodeProto, sums: str) -> tuple[list[str], AnyArray | None]:
        """Run-time scales and the constant that a Mul applies to ``sums``; None where it is no such Mul."""
        if node.op_type != "Mul" or node.input[0] == node.input[1]:
            return [], None
        return self._leaves(node.input[1] if node.input[0] == sums else node.input[0])

    def _leaves(self, name: str) -> tuple[list[str], AnyArray | None]:
        value = self._reading.array(name)
        if value is not None:
            return [], value.astype(np.float32)
        if name in self._scales:
            return [name], np.ones((), np.float32)
        writer = self._reading.writer.get(name)
        if writer is None:
            return [], None
        if writer.op_type in _SCALE_MOVERS:
            return self._leaves(writer.input[0])
        if writer.op_type != "Mul":
            return [], None
        (first, one), (second, other) = (self._leaves(side) for side in writer.input)
        return [*first, *second], None if one is None or other is None else np.asarray(one * other)

    # Products that hold their scales.

    def _product_with_scales(self, node: onnx.NodeProto) -> None:
        inputs = [*node.input, *[""] * (7 - len(node.input))]
        if node.op_type == "DynamicQuantizeMatMul":
            _, weight, scale, zero, bias = inputs[:5]
            left: _Activation | _Weight = self._rounded_input(node)
        else:
            _, weight, left_scale, scale, _, zero, bias = inputs
            left = self._side(node, 0, 4)
            if isinstance(left, _Weight) or left.scale != left_scale:
                raise self._refused(node, "another scale than that of its integers")
        factor = self._reading.array(scale)
        if factor is None:
            raise self._refused(node, f"the scale '{scale}' is no constant")
        self._replaced.add(id(node))
        right = self._weight(node, weight, zero)
        result = self._fresh(f"{node.output[0]}/product") if bias else node.output[0]
        self._write("MatMul", [left, right], factor.astype(np.float32), result, node)
        if bias:
            self._add("Add", [result, bias], node.output[0])
            self._sums[-1] = node.output[0]

    def _rounded_input(self, node: onnx.NodeProto) -> _Activation:
        names = [self._fresh(f"{node.output[0]}/{part}") for part in ("integers", "scale", "zero_point")]
        if self._rounded:
            self._added.append(helper.make_node(_QUANTIZE, [node.input[0]], names, name=names[0]))
        return _Activation(node.input[0], *names)

    # Writing.

    def _write(
        self,
        op: str,
        sides: Sequence[_Activation | _Weight],
        factor: AnyArray,
        result: str,
        product: onnx.NodeProto,
    ) -> None:
        self._sums.append(result)
        axis = _channel_axis(op, sides, factor)
        inside = factor.size == 1 or axis is not None
        output = result if inside else self._fresh(f"{result}/unscaled")
        scale = factor if inside else np.ones((), np.float32)
        names = [
            self._activation(side) if isinstance(side, _Activation) else self._constant(side, scale, axis)
            for side in sides
        ]
        if all(isinstance(side, _Activation) for side in sides) and not np.all(scale == 1.0):
            output, inside = self._fresh(f"{result}/unscaled"), False
        node = helper.make_node(op, names, [output], name=product.name)
        product.name = self._fresh(f"{product.name}/integers")
        node.attribute.extend(product.attribute if op == "Conv" else [])
        self._added.append(node)
        if not inside:
            self._add("Mul", [output, self._reading.add_constant(f"{result}/scale", factor)], result)

    def _activation(self, side: _Activation) -> str:
        if not self._rounded:
            return side.real
        name = self._fresh(f"{side.integers}/rounded")
        return self._add("DequantizeLinear", [side.integers, side.scale, side.zero_point], name)

    def _constant(self, side: _Weight, scale: AnyArray, axis: int | None) -> str:
        grid = _grid(side, scale, axis)
        if self._form != "weights":
            return self._reading.add_constant(
                side.name.removesuffix("_quantized"), dequantize(side.integers, grid)
            )
        kind = side.integers.dtype
        parts = (side.integers, grid.scale, grid.zero_point.astype(kind))
        names = [
            self._reading.add_constant(f"{side.name}/{part}", value)
            for part, value in zip(("integers", "scale", "zero_point"), parts, strict=True)
        ]
        name = self._fresh(f"{side.name}/real")
        self._added.append(
            helper.make_node("DequantizeLinear", names, [name], name=name, axis=grid.axis or 0)
        )
        return name

    def _add(self, op: str, inputs: list[str], output: str) -> str:
        self._added.append(helper.make_node(op, inputs, [output], name=self._fresh(output)))
        return output

    def _fresh(self, wish: str) -> str:
        taken = {name for node in self._added for name in (*node.output, node.name)}
        name, count = fresh_name(self._graph, wish), 1
        while name in taken:
            count += 1
            name = fresh_name(self._graph, f"{wish}_{count}")
        return name


def _grid(weight: _Weight, scale: AnyArray, axis: int | None) -> Grid:
    zero_point = weight.zero_point
    scale = scale.reshape(-1) if axis is not None and scale.size > 1 else scale.reshape(())
    if zero_point.size > 1:
        zero_point = zero_point.reshape(-1)
        scale = np.broadcast_to(scale, zero_point.shape)
    else:
        zero_point = zero_point.reshape(())
    return make_grid(scale, zero_point, axis=axis, signed=_BITS[weight.integers.dtype])


def _channel_axis(op: str, sides: Sequence[_Activation | _Weight], factor: AnyArray) -> int | None:
    """Axis of the weight's output channels; None where ``factor`` does not lie along it."""
    weight = sides[1]
    if not isinstance(weight, _Weight) or weight.integers.ndim < 2:
        return None
    axis = 0 if op == "Conv" else weight.integers.ndim - 1
    rank = weight.integers.ndim
    shape = (1,) * (rank - factor.ndim) + factor.shape
    channels = 1 if op == "Conv" else rank - 1
    if len(shape) != rank or any(size > 1 for i, size in enumerate(shape) if i != channels):
        return None
    return axis if shape[channels] in (1, weight.integers.shape[axis]) else None
