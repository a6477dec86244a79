"""Quantizers that no runtime loads, written as Div, Round, Clip and Mul after their own specification.

Only to run such a file: the import is compared with this, which shares nothing with it but the attributes.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from avq.builder.graph.edit import attribute, fresh_name
from avq.builder.lift.fakequant import is_fake_quantize
from avq.builder.lift.linear import DEQUANTIZE, QUANTIZE
from avq.builder.lift.reading import Reading, number, text
from avq.builder.lift.refuse import is_quantizer


def spell_out(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with every quantizer in float operators of the standard domain; integers become whole floats."""
    reading = Reading.of(model)
    nodes: list[onnx.NodeProto] = []
    for node in reading.nodes:
        if is_quantizer(node) or node.output[0] in reading.integer_clips:
            nodes.extend(_Speller(reading, node).spell())
        else:
            nodes.append(node)
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    graph = reading.proto.graph
    del graph.node[:]
    graph.node.extend(copies)
    used = {n.domain for n in copies} | {""}
    kept = [e for e in reading.proto.opset_import if e.domain in used]
    del reading.proto.opset_import[:]
    reading.proto.opset_import.extend(kept)
    return reading.proto


class _Speller:
    """Writes the nodes of one quantizer."""

    def __init__(self, reading: Reading, node: onnx.NodeProto) -> None:
        self._reading, self._node = reading, node
        self._nodes: list[onnx.NodeProto] = []

    def spell(self) -> list[onnx.NodeProto]:
        if is_fake_quantize(self._node):
            self._fake_quantize()
        elif self._node.op_type == "BipolarQuant":
            self._bipolar()
        elif self._node.op_type in QUANTIZE:
            self._quantize_linear()
        elif self._node.op_type in DEQUANTIZE:
            self._dequantize_linear()
        elif self._node.op_type == "Clip":
            self._clip()
        else:
            self._quant()
        return self._nodes

    def _quantize_linear(self) -> None:
        x, scale = self._node.input[:2]
        rank = self._reading.rank(x)
        steps = self._op("Round", self._op("Div", x, self._spread(scale, rank)))
        zero_point = self._node.input[2] if len(self._node.input) > 2 else ""
        kind = np.uint8 if not zero_point else self._value(zero_point).dtype
        if zero_point:
            steps = self._op("Add", steps, self._spread(zero_point, rank))
        ends = np.iinfo(kind)
        self._between(steps, float(ends.min), float(ends.max))

    def _dequantize_linear(self) -> None:
        stored, scale = self._node.input[:2]
        rank = self._reading.rank(stored)
        if stored in self._reading.constants:
            stored = self._op("Cast", stored)
            self._nodes[-1].attribute.append(helper.make_attribute("to", onnx.TensorProto.FLOAT))
        if len(self._node.input) > 2 and self._node.input[2]:
            stored = self._op("Sub", stored, self._spread(self._node.input[2], rank))
        self._op("Mul", stored, self._spread(scale, rank), result=self._node.output[0])

    def _clip(self) -> None:
        low, high = (float(np.ravel(self._value(end))[0]) for end in self._node.input[1:3])
        self._between(self._node.input[0], low, high)

    def _between(self, steps: str, low: float, high: float) -> None:
        above = self._op("Max", steps, self._number(low))
        self._op("Min", above, self._number(high), result=self._node.output[0])

    def _spread(self, name: str, rank: int) -> str:
        """A scale or zero point in float, broadcasting along the node's axis."""
        values = self._value(name).astype(np.float32)
        if values.size > 1:
            axis = number(self._node, "axis", 1) % rank
            values = values.reshape([-1 if i == axis else 1 for i in range(rank)])
        return self._reading.add_constant(f"{self._node.output[0]}/{name}", values)

    def _quant(self) -> None:
        x, scale, zero_point, bits = self._node.input
        width = int(np.ravel(self._value(bits))[0])
        low, high = _ends(width, number(self._node, "signed", 1), number(self._node, "narrow", 0))
        steps = self._op("Add", self._op("Div", x, scale), zero_point)
        steps = self._op("Min", self._op("Max", steps, self._number(low)), self._number(high))
        rounded = self._round(steps, text(self._node, "rounding_mode", "ROUND").upper())
        self._op("Mul", self._op("Sub", rounded, zero_point), scale, result=self._node.output[0])

    def _round(self, steps: str, mode: str) -> str:
        if mode in ("ROUND", "HALF_EVEN"):
            return self._op("Round", steps)
        if mode == "HALF_UP":
            return self._op("Floor", self._op("Add", steps, self._number(0.5)))
        if mode in ("CEIL", "UP"):
            return self._op("Ceil", steps)
        if mode in ("FLOOR", "DOWN"):
            return self._op("Floor", steps)
        return self._op("Mul", self._op("Sign", steps), self._op("Floor", self._op("Abs", steps)))

    def _bipolar(self) -> None:
        x, scale = self._node.input
        positive = self._op("Not", self._op("Less", x, self._number(0.0)))
        sign = self._op("Where", positive, self._number(1.0), self._number(-1.0))
        self._op("Mul", sign, scale, result=self._node.output[0])

    def _fake_quantize(self) -> None:
        x, low, high, out_low, out_high = self._node.input
        steps = self._number(float(int(attribute(self._node, "levels", 256)) - 1))
        inside = self._op("Min", self._op("Max", x, low), high)
        share = self._op("Div", self._op("Sub", inside, low), self._op("Sub", high, low))
        level = self._op("Div", self._op("Round", self._op("Mul", share, steps)), steps)
        span = self._op("Sub", out_high, out_low)
        self._op("Add", self._op("Mul", level, span), out_low, result=self._node.output[0])

    def _op(self, op: str, *inputs: str, result: str = "") -> str:
        name = f"{self._node.output[0]}/spelled{len(self._nodes)}"
        output = result or name
        self._nodes.append(helper.make_node(op, list(inputs), [output], name=name))
        return output

    def _value(self, name: str) -> np.ndarray:
        value = self._reading.array(name)
        return np.zeros(()) if value is None else np.asarray(value)

    def _number(self, value: float) -> str:
        graph = self._reading.proto.graph
        name = fresh_name(graph, f"{self._node.output[0]}/number")
        graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name


def _ends(bits: int, signed: int, narrow: int) -> tuple[float, float]:
    if signed:
        return float(-(2 ** (bits - 1)) + narrow), float(2 ** (bits - 1) - 1)
    return 0.0, float(2**bits - 1 - narrow)
