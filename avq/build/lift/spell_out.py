"""Quantizers that no runtime loads, written as Div, Round, Clip and Mul after their own specification.

Only to run such a file: the import is compared with this, which shares nothing with it but the attributes.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from avq.build.graph.edit import attribute, fresh_name
from avq.build.lift.fakequant import is_fake_quantize
from avq.build.lift.qonnx import is_qonnx
from avq.build.lift.reading import Reading, number, text


def spell_out(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with every Quant, BipolarQuant and FakeQuantize in operators of the standard domain."""
    reading = Reading.of(model)
    nodes: list[onnx.NodeProto] = []
    for node in reading.nodes:
        if is_qonnx(node) or is_fake_quantize(node):
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
        else:
            self._quant()
        return self._nodes

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
        output = result or f"{self._node.output[0]}/spelled{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, list(inputs), [output], name=output))
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
