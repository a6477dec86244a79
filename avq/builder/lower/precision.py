"""FP16 islands: nodes the plan runs in FP16, between casts.

BF16 is a precision hint of the runtime: no CPU runtime takes BF16 graphs, those with BF16 kernels convert FP32.

Where INT8 nodes have an FP16 side, the pairs around them change type as well: Q reads FP16, DQ writes it, and the
scales stay FP32 (opset 23), since FP16 would round them and lose the small ones. INT4 weights are the exception:
TensorRT's builder infers the type of what they become from their scales, so these are FP16 where the readers are.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from avq.builder.graph.opset import opset_of
from avq.builder.lower.model import FP16_SUFFIX, Model
from avq.errors import PlanError
from avq.types import AnyArray, QuantizationPlan

_FP16, _FP32 = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
FP16_MAX = 65504.0
#: Below it FP16 loses bits, and TensorRT refuses such scales.
FP16_MIN_SCALE = float(np.finfo(np.float16).tiny)
#: The first operator set whose Q and DQ take FP16 data with FP32 scales.
FP16_QDQ_OPSET = 23


def lower_precisions(proto: onnx.ModelProto, plan: QuantizationPlan) -> onnx.ModelProto:
    """Return ``proto`` with the plan's fp16 nodes in FP16; other nodes and all names stay.

    Tensors between FP16 nodes stay in FP16.

    Raises:
        PlanError: an operator without an FP16 form, or a constant outside +-65504.
    """
    sided = {name for name, choice in plan.precisions.items() if choice.float_side == "fp16"}
    chosen = sided | {name for name, choice in plan.precisions.items() if choice.precision == "fp16"}
    if not chosen:
        return proto
    island = _Island(Model(proto, opset=FP16_QDQ_OPSET if sided else 0), chosen, pairs_too=bool(sided))
    nodes: list[onnx.NodeProto] = []
    for node in island.model.graph.node:
        nodes.extend(island.lowered(node))
    island.model.replace_nodes(_without_unread_casts(nodes, island))
    island.model.drop_unused_initializers()
    return island.model.proto


def has_fp16_form(op: str, domain: str, opset: int) -> bool:
    """Whether the operator's main output may be FP16; False for unknown operators."""
    try:
        schema = onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return False
    return bool(schema.outputs) and "tensor(float16)" in _allowed(schema, schema.outputs[0].type_str)


def _allowed(schema: onnx.defs.OpSchema, type_param: str) -> list[str]:
    known = {c.type_param_str: list(c.allowed_type_strs) for c in schema.type_constraints}
    return known.get(type_param, [])


class _Island:
    """Rewrites nodes to FP16; keeps the name of the FP16 copy of every tensor that has one."""

    def __init__(self, model: Model, chosen: set[str], *, pairs_too: bool) -> None:
        self.model = model
        self.opset = opset_of(model.proto)
        self.back_casts: set[str] = set()  # names of casts to float32, dropped when unread
        self._chosen, self._pairs_too = chosen, pairs_too
        self._fp16_names: dict[str, str] = {}

    def lowered(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return the nodes that replace ``node``."""
        if node.name in self._chosen:
            return self.convert(node)
        if self._pairs_too and node.op_type == "QuantizeLinear" and node.input[0] in self._fp16_names:
            node.input[0] = self._fp16_names[node.input[0]]
        elif node.op_type == "DequantizeLinear" and self._only_fp16_readers(node):
            if self._reads_int4(node):
                node.input[1] = self._fp16_scale(node.input[1])
                return [node, self._write(node, 0)]
            if self._pairs_too:
                node.attribute.append(helper.make_attribute("output_dtype", _FP16))
                return [node, self._write(node, 0)]
        return [node]

    def _reads_int4(self, node: onnx.NodeProto) -> bool:
        stored = self.model.initializers.get(node.input[0])
        return stored is not None and stored.data_type == onnx.TensorProto.INT4

    def _fp16_scale(self, scale: str) -> str:
        values = numpy_helper.to_array(self.model.initializers[scale])
        if float(values.min(initial=np.inf)) < FP16_MIN_SCALE:
            raise PlanError(
                f"the scales '{scale}' do not fit FP16",
                seen=f"smallest {float(values.min()):g}, FP16 is exact from {FP16_MIN_SCALE:g} on",
                fix="leave the nodes that read these weights in fp32",
            )
        if scale not in self._fp16_names:
            fp16_name = self.model.names.fresh(f"{scale}{FP16_SUFFIX}")
            self._add_constant(scale, fp16_name, values)
            self._fp16_names[scale] = fp16_name
        return self._fp16_names[scale]

    def _only_fp16_readers(self, node: onnx.NodeProto) -> bool:
        readers = self.model.readers.get(node.output[0], [])
        inside = bool(readers) and node.output[0] not in self.model.outputs
        return inside and all(reader.name in self._chosen for reader, _ in readers)

    def convert(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return casts to FP16, the node in FP16, casts to FP32."""
        inputs, outputs = self._float_ports(node)
        before = [cast for index in inputs for cast in self._read(node, index)]
        after = [self._write(node, index) for index in outputs]
        return [*before, node, *after]

    def _float_ports(self, node: onnx.NodeProto) -> tuple[list[int], list[int]]:
        """Return the indices of inputs and outputs of the operator's main type in its schema."""
        schema = onnx.defs.get_schema(node.op_type, self.opset, node.domain)
        main = schema.outputs[0].type_str
        if "tensor(float16)" not in _allowed(schema, main):
            raise PlanError(
                f"node '{node.name}' ({node.op_type}) has no FP16 form",
                seen=f"its output type is {main}",
                fix="leave it in fp32",
            )
        ins = [i for i, name in enumerate(node.input) if name and _formal(schema.inputs, i) == main]
        return ins, [i for i, name in enumerate(node.output) if name and _formal(schema.outputs, i) == main]

    def _read(self, node: onnx.NodeProto, index: int) -> list[onnx.NodeProto]:
        tensor, casts = node.input[index], []
        if tensor not in self._fp16_names and self.model.element_type(tensor) == _FP32:
            value = self.model.initializers.get(tensor)
            fp16_name = self.model.names.fresh(f"{tensor}{FP16_SUFFIX}")
            if value is not None:
                self._add_constant(tensor, fp16_name, numpy_helper.to_array(value))
            else:
                casts = [helper.make_node("Cast", [tensor], [fp16_name], name=fp16_name, to=_FP16)]
            self._fp16_names[tensor] = fp16_name
        node.input[index] = self._fp16_names.get(tensor, tensor)
        return casts

    def _write(self, node: onnx.NodeProto, index: int) -> onnx.NodeProto:
        tensor = node.output[index]
        fp16_name = self.model.names.fresh(f"{tensor}{FP16_SUFFIX}")
        self._fp16_names[tensor] = node.output[index] = fp16_name
        name = self.model.names.fresh(f"{tensor}/fp32_cast")
        self.back_casts.add(name)
        return helper.make_node("Cast", [fp16_name], [tensor], name=name, to=_FP32)

    def _add_constant(self, tensor: str, fp16_name: str, value: AnyArray) -> None:
        peak = float(np.abs(value).max(initial=0.0))
        if not peak <= FP16_MAX:  # also refuses NaN
            raise PlanError(
                f"the constant '{tensor}' does not fit FP16",
                seen=f"largest magnitude {peak:g}, FP16 ends at {FP16_MAX:g}",
                fix="leave its node in fp32",
            )
        self.model.add_initializer(numpy_helper.from_array(value.astype(np.float16), fp16_name))


def _formal(ports: object, index: int) -> str:
    """Return the type parameter of an operator's input or output; the last one may repeat."""
    listed = list(ports)  # type: ignore[call-overload]
    return str(listed[min(index, len(listed) - 1)].type_str)


def _without_unread_casts(nodes: list[onnx.NodeProto], island: _Island) -> list[onnx.NodeProto]:
    read = {name for node in nodes for name in node.input} | island.model.outputs
    return [n for n in nodes if n.name not in island.back_casts or n.output[0] in read]
