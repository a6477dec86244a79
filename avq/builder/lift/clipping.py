"""Restore the activations that a quantizer replaced by its own clipping.

onnxruntime's quantizer removes a Relu or Clip in front of a QuantizeLinear whose range already ends there. The lifted
float graph needs the activation back. Rules:

- A range that starts at exactly 0 (zero point on the lowest integer) is a Relu.
- It is a Clip(0, 6) when its upper end lies at most one step below 6.0, or less than half a step above: the integers
  are the same with and without the Clip.
- Other upper ends look like a calibrated maximum, ranges that start below 0 like a calibrated minimum:
  nothing is restored for them.

Only tensors written by a linear operator, directly or through operators that keep values, get an activation. Decoding
arithmetic (Slice, Sub, sums with a table) gets none, nor does a tensor that cannot be negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper

from avq.builder.graph.edit import fresh_name, text_attribute
from avq.builder.lift.grid import Grid
from avq.builder.lift.reading import FoundQuantizer, QuantizedFile

RELU6_MAX = 6.0
_BIAS_BITS = 32
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_LINEAR = _PRODUCTS | {
    "BatchNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "LayerNormalization",
}
_ELEMENTWISE = frozenset({"Add", "Mul", "Div"})
# Every output value is one of the input's or lies between some of them.
_KEEPS_VALUES = frozenset(
    {"Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Concat", "MaxPool"}
    | {
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "DepthToSpace",
        "SpaceToDepth",
        "Resize",
        "Upsample",
    }
)
_KEEPS_SIGN = _KEEPS_VALUES | {
    "Slice",
    "Split",
    "Gather",
    "Expand",
    "Tile",
    "ReduceMean",
    "ReduceMax",
    "ReduceSum",
}
_NON_NEGATIVE = frozenset(
    {"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Exp", "Abs", "Sqrt", "ReduceL1", "ReduceL2"}
)
_DEPTH = 64


def restore_activations(reading: QuantizedFile, found: Sequence[FoundQuantizer]) -> list[FoundQuantizer]:
    """Put a Relu or Clip in front of every quantizer that clips in its place.

    Args:
        reading: the copy of the file; the activations are added to its graph.
        found: its quantizers.

    Returns:
        The quantizers, in the same order; those behind a restored activation read its output.
    """
    signs = _Signs(reading, found)
    added: dict[tuple[str, float | None], str] = {}
    restored = []
    for quantizer in found:
        grid = quantizer.clip if quantizer.grid is None else quantizer.grid
        if grid is None or not starts_at_zero(grid) or not signs.may_be_cut(quantizer.source):
            restored.append(quantizer)
            continue
        key = (quantizer.source, RELU6_MAX if ends_at(grid, RELU6_MAX) else None)
        if key not in added:
            added[key] = _add_activation(reading, *key)
        restored.append(replace(quantizer, source=added[key]))
    return restored


def starts_at_zero(grid: Grid) -> bool:
    """Whether the lowest integer of every channel stands for 0."""
    return grid.bits != _BIAS_BITS and bool(np.all(grid.zero_point == grid.qmin))


def ends_at(grid: Grid, high: float) -> bool:
    """Whether a clip at ``high`` leaves every integer as it is, and the range ends within one step of it."""
    scale = grid.scale.astype(np.float64)
    above_steps = (grid.qmax - grid.zero_point) - high / scale
    return bool(np.all((above_steps >= -1.0) & (above_steps < 0.5)))


def _add_activation(reading: QuantizedFile, source: str, high: float | None) -> str:
    graph = reading.proto.graph
    output = fresh_name(graph, f"{source}/{'relu' if high is None else 'clip'}")
    if high is None:
        node = helper.make_node("Relu", [source], [output], name=output)
    elif reading.opset < 11:
        node = helper.make_node("Clip", [source], [output], name=output, min=0.0, max=high)
    else:
        ends = [
            reading.add_constant(f"{output}/{name}", np.asarray(value, np.float32))
            for name, value in (("low", 0.0), ("high", high))
        ]
        node = helper.make_node("Clip", [source, *ends], [output], name=output)
    graph.node.append(node)
    return output


class _Signs:
    """Where values of the file come from, and whether they can be negative."""

    def __init__(self, reading: QuantizedFile, found: Sequence[FoundQuantizer]) -> None:
        self._reading = reading
        self._quantizers = {quantizer.result: quantizer for quantizer in found}
        self._known: dict[str, bool] = {}

    def may_be_cut(self, tensor: str) -> bool:
        """Whether a linear operator writes ``tensor`` and its values can be negative."""
        return self._is_linear(tensor, _DEPTH) and not self._non_negative(tensor, _DEPTH)

    def _is_linear(self, tensor: str, depth: int) -> bool:
        """Whether a linear operator, or a sum of one, writes the values of ``tensor``."""
        if tensor in self._quantizers:
            tensor = self._quantizers[tensor].source
        node = self._reading.writer.get(tensor)
        if node is None or depth == 0:
            return False
        if node.op_type in _LINEAR:
            return True
        return any(self._is_linear(name, depth - 1) for name in self._carried(node))

    def _carried(self, node: onnx.NodeProto) -> list[str]:
        """Inputs whose values, shifted and scaled per channel, are those of the output."""
        if node.op_type in _KEEPS_VALUES:
            return list(node.input if node.op_type == "Concat" else node.input[:1])
        if node.op_type not in _ELEMENTWISE:
            return []
        values = [name for name in node.input if self._constant(name) is None]
        if len(values) == 2 and node.op_type != "Add":
            return []
        return values if all(self._per_channel(n) for n in node.input if n not in values) else []

    def _per_channel(self, name: str) -> bool:
        value = self._constant(name)
        return value is not None and sum(size > 1 for size in value.shape) <= 1

    def _non_negative(self, tensor: str, depth: int) -> bool:
        """Whether every value of ``tensor`` is known to be at least 0."""
        if tensor not in self._known:
            self._known[tensor] = depth > 0 and self._derive_non_negative(tensor, depth)
        return self._known[tensor]

    def _derive_non_negative(self, tensor: str, depth: int) -> bool:
        value = self._constant(tensor)
        if value is not None:
            return bool(np.all(value >= 0))
        quantizer = self._quantizers.get(tensor)
        if quantizer is not None:
            cut = quantizer.grid is not None and starts_at_zero(quantizer.grid)
            return cut or self._non_negative(quantizer.source, depth - 1)
        node = self._reading.writer.get(tensor)
        return node is not None and self._writes_non_negative(node, depth)

    def _writes_non_negative(self, node: onnx.NodeProto, depth: int) -> bool:
        op = node.op_type
        if op in _NON_NEGATIVE:
            return True
        if op == "Clip":
            low = self._constant(node.input[1]) if len(node.input) > 1 else None
            cut = low is not None and bool(np.all(low >= 0))
            cut = cut or any(a.name == "min" and a.f >= 0 for a in node.attribute)
            return cut or self._non_negative(node.input[0], depth - 1)
        if op in _KEEPS_SIGN:
            if op == "Resize" and text_attribute(node, "mode", "nearest") == "cubic":
                return False
            names = node.input if op == "Concat" else node.input[:1]
        elif op in _PRODUCTS or op in _ELEMENTWISE:
            names = [name for name in node.input if name]
        else:
            return False
        return all(self._non_negative(name, depth - 1) for name in names)

    def _constant(self, name: str) -> np.ndarray | None:
        """Value of a constant, or of the one behind a quantizer."""
        quantizer = self._quantizers.get(name)
        value = self._reading.array(quantizer.source if quantizer is not None else name)
        return None if value is None else np.asarray(value)
