"""FP16 islands: nodes the plan runs in FP16, between casts. BF16 is the runtime's business (its precision
hint), because no CPU runtime takes BF16 graphs and the only ones that run it convert by themselves.

Where INT8 nodes have an FP16 side, the pairs around them change type as well: Q reads FP16, DQ writes it, and the
scales stay FP32 (opset 23), since FP16 would round them and lose the small ones. INT4 weights are the exception:
TensorRT's builder infers the type of what they become from their scales, so these are FP16 where the readers are.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from avq.builder.graph.opset import opset_of
from avq.builder.lower.model import HALF, Model
from avq.errors import PlanError
from avq.types import AnyArray, QuantizationPlan

_HALF, _SINGLE = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
LARGEST_HALF = 65504.0
#: Below it FP16 loses bits, and TensorRT refuses such scales.
SMALLEST_HALF_SCALE = float(np.finfo(np.float16).tiny)
#: The first operator set whose Q and DQ take FP16 data with FP32 scales.
SIDED_OPSET = 23


def lower_precisions(proto: onnx.ModelProto, plan: QuantizationPlan) -> onnx.ModelProto:
    """``proto`` with the plan's fp16 nodes computing in FP16; every other node and all names stay.

    Neighbouring FP16 nodes hand their tensors on in FP16. Raises PlanError for operators without an FP16
    form and for constants outside +-65504.
    """
    sided = {name for name, choice in plan.precisions.items() if choice.float_side == "fp16"}
    chosen = sided | {name for name, choice in plan.precisions.items() if choice.precision == "fp16"}
    if not chosen:
        return proto
    island = _Island(Model(proto, opset=SIDED_OPSET if sided else 0), chosen, pairs_too=bool(sided))
    nodes: list[onnx.NodeProto] = []
    for node in island.model.graph.node:
        nodes.extend(island.lowered(node))
    island.model.replace_nodes(_without_unread_casts(nodes, island))
    island.model.drop_unused_initializers()
    return island.model.proto


def has_half_form(op: str, domain: str, opset: int) -> bool:
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
    """Remembers the FP16 twin of every tensor that has one."""

    def __init__(self, model: Model, chosen: set[str], *, pairs_too: bool) -> None:
        self.model = model
        self.opset = opset_of(model.proto)
        self.back_casts: set[str] = set()  # names of casts to float32, dropped when unread
        self._chosen, self._pairs_too = chosen, pairs_too
        self._halves: dict[str, str] = {}

    def lowered(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """What stands where ``node`` stood."""
        if node.name in self._chosen:
            return self.convert(node)
        if self._pairs_too and node.op_type == "QuantizeLinear" and node.input[0] in self._halves:
            node.input[0] = self._halves[node.input[0]]
        elif node.op_type == "DequantizeLinear" and self._only_halves_read(node):
            if self._reads_int4(node):
                node.input[1] = self._half_scale(node.input[1])
                return [node, self._write(node, 0)]
            if self._pairs_too:
                node.attribute.append(helper.make_attribute("output_dtype", _HALF))
                return [node, self._write(node, 0)]
        return [node]

    def _reads_int4(self, node: onnx.NodeProto) -> bool:
        stored = self.model.initializers.get(node.input[0])
        return stored is not None and stored.data_type == onnx.TensorProto.INT4

    def _half_scale(self, scale: str) -> str:
        values = numpy_helper.to_array(self.model.initializers[scale])
        if float(values.min(initial=np.inf)) < SMALLEST_HALF_SCALE:
            raise PlanError(
                f"the scales '{scale}' do not fit FP16",
                seen=f"smallest {float(values.min()):g}, FP16 is exact from {SMALLEST_HALF_SCALE:g} on",
                fix="leave the nodes that read these weights in fp32",
            )
        if scale not in self._halves:
            half = self.model.names.fresh(f"{scale}{HALF}")
            self._add_constant(scale, half, values)
            self._halves[scale] = half
        return self._halves[scale]

    def _only_halves_read(self, node: onnx.NodeProto) -> bool:
        readers = self.model.readers.get(node.output[0], [])
        inside = bool(readers) and node.output[0] not in self.model.outputs
        return inside and all(reader.name in self._chosen for reader, _ in readers)

    def convert(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Casts in, the node in FP16, casts out."""
        inputs, outputs = self._float_ports(node)
        before = [cast for index in inputs for cast in self._read(node, index)]
        after = [self._write(node, index) for index in outputs]
        return [*before, node, *after]

    def _float_ports(self, node: onnx.NodeProto) -> tuple[list[int], list[int]]:
        """Inputs and outputs of the operator's main type, as its schema says."""
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
        if tensor not in self._halves and self.model.element_type(tensor) == _SINGLE:
            value = self.model.initializers.get(tensor)
            half = self.model.names.fresh(f"{tensor}{HALF}")
            if value is not None:
                self._add_constant(tensor, half, numpy_helper.to_array(value))
            else:
                casts = [helper.make_node("Cast", [tensor], [half], name=half, to=_HALF)]
            self._halves[tensor] = half
        node.input[index] = self._halves.get(tensor, tensor)
        return casts

    def _write(self, node: onnx.NodeProto, index: int) -> onnx.NodeProto:
        tensor = node.output[index]
        half = self.model.names.fresh(f"{tensor}{HALF}")
        self._halves[tensor] = node.output[index] = half
        name = self.model.names.fresh(f"{tensor}/fp32_cast")
        self.back_casts.add(name)
        return helper.make_node("Cast", [half], [tensor], name=name, to=_SINGLE)

    def _add_constant(self, tensor: str, half: str, value: AnyArray) -> None:
        peak = float(np.abs(value).max(initial=0.0))
        if not peak <= LARGEST_HALF:  # also refuses NaN
            raise PlanError(
                f"the constant '{tensor}' does not fit FP16",
                seen=f"largest magnitude {peak:g}, FP16 ends at {LARGEST_HALF:g}",
                fix="leave its node in fp32",
            )
        self.model.add_initializer(numpy_helper.from_array(value.astype(np.float16), half))


def _formal(ports: object, index: int) -> str:
    """Type parameter of an operator's input or output; the last one may repeat."""
    listed = list(ports)  # type: ignore[call-overload]
    return str(listed[min(index, len(listed) - 1)].type_str)


def _without_unread_casts(nodes: list[onnx.NodeProto], island: _Island) -> list[onnx.NodeProto]:
    read = {name for node in nodes for name in node.input} | island.model.outputs
    return [n for n in nodes if n.name not in island.back_casts or n.output[0] in read]
