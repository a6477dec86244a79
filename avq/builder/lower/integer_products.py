"""Write matrix products of run-time quantized activations as integer products.

Behind DynamicQuantizeLinear a pair of DequantizeLinear and a float MatMul gives the same numbers, but onnxruntime
keeps that in integers only where no bias follows: MatMul and Add become a float Gemm first. DynamicQuantizeLinear,
It fuses MatMulInteger, Cast, Mul into one kernel, bias included; any other runtime executes them as written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from avq.builder.graph.edit import int_attribute
from avq.builder.lower.model import Model
from avq.types import AnyArray

_BYTES = (np.int8, np.uint8)


@dataclass(frozen=True, slots=True)
class _Integers:
    """One operand: integers, their zero point ('' for 0), and the scale, all names of tensors."""

    values: str
    zero_point: str
    scale: str


def write_integer_products(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``proto`` with every MatMul and Gemm on a dynamically quantized operand in integers.

    Products whose other operand is float, or whose form MatMulInteger lacks, stay as they are. ``proto`` is
    not changed.
    """
    if not any(node.op_type == "DynamicQuantizeLinear" for node in proto.graph.node):
        return proto
    model = Model(proto)
    writer = _Writer(model)
    nodes = [new for node in model.graph.node for new in writer.rewrite(node)]
    model.replace_nodes(_without_unread(nodes, model.outputs))
    model.drop_unused_initializers()
    return model.proto


class _Writer:
    def __init__(self, model: Model) -> None:
        self._model = model

    def rewrite(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return the nodes that replace ``node``."""
        if node.op_type not in ("MatMul", "Gemm"):
            return [node]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if attributes.get("transA", 0) or attributes.get("beta", 1.0) != 1.0:
            return [node]
        left, right = self._operand(node, 0, attributes), self._operand(node, 1, attributes)
        if left is None or right is None or not self._is_dynamic(node, 0):
            return [node]
        return self._product(node, left, right, float(attributes.get("alpha", 1.0)))

    def _is_dynamic(self, node: onnx.NodeProto, index: int) -> bool:
        source = self._dequantizer(node, index)
        before = None if source is None else self._model.producers.get(source.input[0])
        return before is not None and before.op_type == "DynamicQuantizeLinear"

    def _dequantizer(self, node: onnx.NodeProto, index: int) -> onnx.NodeProto | None:
        producer = self._model.producers.get(node.input[index])
        return producer if producer is not None and producer.op_type == "DequantizeLinear" else None

    def _operand(
        self, node: onnx.NodeProto, index: int, attributes: Mapping[str, object]
    ) -> _Integers | None:
        source = self._dequantizer(node, index)
        if source is None:
            return None
        if self._is_dynamic(node, index):
            transposed = index == 1 and bool(attributes.get("transB", 0))
            return None if transposed else _Integers(source.input[0], source.input[2], source.input[1])
        return self._weight(source, transposed=bool(attributes.get("transB", 0))) if index == 1 else None

    def _weight(self, source: onnx.NodeProto, *, transposed: bool) -> _Integers | None:
        """Return integer weights (..., K, N) with one scale, or one per column; zero point 0 only."""
        values, scale = self._model.constant(source.input[0]), self._model.constant(source.input[1])
        zero = self._model.constant(source.input[2]) if len(source.input) > 2 else None
        if values is None or scale is None or values.dtype not in _BYTES or np.any(zero):
            return None
        if values.ndim < 2 or (transposed and values.ndim != 2):
            return None
        if scale.size > 1:
            axis = int_attribute(source, "axis", 1) % values.ndim
            if values.ndim != 2 or axis != (0 if transposed else 1):
                return None
        name = source.input[0]
        return _Integers(self._transposed(name, values) if transposed else name, "", source.input[1])

    def _transposed(self, name: str, values: AnyArray) -> str:
        transposed_name = f"{name}/transposed"
        if transposed_name in self._model.initializers:
            return transposed_name
        return self._model.add_initializer(
            numpy_helper.from_array(np.ascontiguousarray(values.T), self._model.names.fresh(transposed_name))
        )

    def _product(
        self, node: onnx.NodeProto, left: _Integers, right: _Integers, alpha: float
    ) -> list[onnx.NodeProto]:
        names = {
            part: self._model.names.fresh(f"{node.name}/{part}")
            for part in ("integers", "sums", "scale", "product")
        }
        scale = right.scale
        if alpha != 1.0:
            folded = np.float32(alpha) * np.asarray(self._model.constant(scale), np.float32)
            fresh = self._model.names.fresh(f"{scale}/alpha")
            scale = self._model.add_initializer(numpy_helper.from_array(np.asarray(folded), fresh))
        bias = list(node.input[2:3]) if len(node.input) > 2 and node.input[2] else []
        result = names["product"] if bias else node.output[0]
        inputs = [left.values, right.values, left.zero_point]
        if right.zero_point:
            inputs.append(right.zero_point)
        nodes = [
            helper.make_node("MatMulInteger", inputs, [names["integers"]], name=names["integers"]),
            helper.make_node(
                "Cast", [names["integers"]], [names["sums"]], name=names["sums"], to=onnx.TensorProto.FLOAT
            ),
            helper.make_node("Mul", [left.scale, scale], [names["scale"]], name=names["scale"]),
            helper.make_node("Mul", [names["sums"], names["scale"]], [result], name=node.name),
        ]
        if bias:
            named = self._model.names.fresh(f"{node.name}/bias")
            nodes.append(helper.make_node("Add", [result, *bias], [node.output[0]], name=named))
        return nodes


def _without_unread(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """Drop the DequantizeLinear nodes whose readers now read the integers."""
    read = {name for node in nodes for name in node.input} | outputs
    return [n for n in nodes if n.op_type != "DequantizeLinear" or n.output[0] in read]
