"""Write a plan as QuantizeLinear/DequantizeLinear pairs.

Only edges that the plan names are quantized. Per activation edge one pair,
shared by every reader with the same grid; constants become integer initialisers behind one DequantizeLinear,
packed ones bytes behind the operators that unpack them. An edge without a node means every reader, the graph
output of that name included; output names never change.

Dynamic activations become DynamicQuantizeLinear, whose scale and zero point follow each picture: unsigned, for
CPUs only.

Grids smaller than their storage (narrow, or below 8 bits) are written by a float Clip to the grid's ends in
front of Q: exact, and legal for every runtime, which a Clip between Q and DQ is not.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from avq.builder.lower.grid import (
    Encoding,
    Grid,
    activation_grid,
    check_encoding,
    check_plan,
    clipped,
    constant_grid,
    needed_opset,
    quantize_constant,
    real_range,
    spread,
)
from avq.builder.lower.model import Model
from avq.builder.lower.pack import WIDEST, write_unpacking
from avq.errors import PlanError
from avq.types import AnyArray, Edge, QuantizationPlan, QuantPoint

_PACKED = {"int4": onnx.TensorProto.INT4, "uint4": onnx.TensorProto.UINT4}
_STORED = {"int8": onnx.TensorProto.INT8, "uint8": onnx.TensorProto.UINT8}


def lower_qdq(proto: onnx.ModelProto, plan: QuantizationPlan, encoding: str) -> onnx.ModelProto:
    """Return the float model with ``plan`` written into it; ``proto`` is not changed.

    Args:
        proto: normalised float model: opset >= 13, unique node names, initialisers not among the inputs.
        plan: decisions; static and (asymmetric only) dynamic points, and weight-only points on constants.
        encoding: "s8" signed bytes, zero point 0; "u8" the same grid stored as unsigned, zero point 128;
            "asymmetric" unsigned with the planned zero points. The first two compute the same numbers.

    Raises:
        PlanError: the plan does not fit the model, or the encoding cannot express it.
    """
    stored_as = check_encoding(plan, encoding)
    has_fp16 = any(t.data_type == onnx.TensorProto.FLOAT16 for t in proto.graph.initializer)
    model = Model(proto, opset=needed_opset(plan.points, has_fp16) if plan.points else 0)
    check_plan(model, plan)
    for name in sorted(plan.overrides):
        model.replace_constant(name, np.asarray(plan.overrides[name]))
    writer = _Writer(model, stored_as)
    for tensor in sorted({point.edge.tensor for point in plan.points}):
        writer.quantize(tensor, plan)
    writer.assemble()
    return model.proto


class _Writer:
    """Collects the new nodes per tensor, then inserts them behind their producers."""

    def __init__(self, model: Model, encoding: Encoding) -> None:
        self._model = model
        self._encoding = encoding
        self._first: list[onnx.NodeProto] = []  # read graph inputs and initialisers only
        self._behind: dict[int, list[onnx.NodeProto]] = {}  # position of the producer -> nodes

    def quantize(self, tensor: str, plan: QuantizationPlan) -> None:
        """Rewire every planned reader of ``tensor`` to its dequantized value."""
        constant = self._model.constant(tensor)
        readers = list(self._model.readers.get(tensor, []))
        whole = plan.by_edge.get(Edge(tensor))
        source = tensor
        pairs: dict[object, str] = {}
        if whole is not None and tensor in self._model.outputs:
            source = self._free_output_name(tensor)
            pairs[_key(whole)] = self._write(tensor, source, constant, whole, result=tensor)
        for node, index in readers:
            point = plan.point_for(tensor, node.name, index)
            if point is None:
                continue
            if _key(point) not in pairs:
                pairs[_key(point)] = self._write(tensor, source, constant, point)
            node.input[index] = pairs[_key(point)]

    def _free_output_name(self, tensor: str) -> str:
        """Rename the producer's output, so that the dequantized value can carry the graph output's name."""
        producer = self._model.producers.get(tensor)
        if producer is None:
            raise PlanError(
                f"the graph output '{tensor}' is an input or a constant and cannot be quantized",
                fix="quantize its readers one by one",
            )
        hidden = self._model.names.fresh(f"{tensor}/float")
        producer.output[list(producer.output).index(tensor)] = hidden
        for node, index in self._model.readers.get(tensor, []):
            node.input[index] = hidden
        return hidden

    def _write(
        self, tensor: str, source: str, constant: AnyArray | None, point: QuantPoint, result: str = ""
    ) -> str:
        """Write one pair (or one constant) and return the name of its dequantized value."""
        if constant is None and point.mode == "dynamic":
            return self._write_dynamic(tensor, source, result)
        if constant is not None and point.packed:
            return self._write_packed(tensor, constant, point, result)
        if constant is not None:
            grid = constant_grid(point)
            stored = self._stored(tensor, constant, point, grid)
            nodes: list[onnx.NodeProto] = []
        else:
            grid = activation_grid(point, self._encoding)
            nodes = self._clip(tensor, source, point)
            stored = nodes[-1].output[0] if nodes else source
        scale, zero_point = self._parameters(tensor, point, grid)
        if constant is None:
            nodes.append(self._node("QuantizeLinear", tensor, [stored, scale, zero_point], point))
            stored = nodes[-1].output[0]
        nodes.append(self._node("DequantizeLinear", tensor, [stored, scale, zero_point], point, result))
        self._place(tensor, nodes)
        return str(nodes[-1].output[0])

    def _write_packed(self, tensor: str, constant: AnyArray, point: QuantPoint, result: str) -> str:
        """Write a constant in integers of the planned width.

        Weight-only ones are multiplied by their scale with plain operators: runtimes fold those at load and then
        run a float layer at full speed, while onnxruntime keeps a DequantizeLinear in every inference.
        """
        integers, grid = quantize_constant(constant, point), constant_grid(point)
        scaled = point.mode == "weight-only" and not point.block_size
        nodes: list[onnx.NodeProto] = []
        if point.bits <= WIDEST:
            to = self._model.element_type(tensor) if scaled else _STORED[grid.dtype]
            nodes, stored = write_unpacking(
                self._model, tensor, integers, point.bits, signed=point.signed, to=to
            )
        else:
            stored = self._integers(f"{tensor}/quantized", integers, grid)
            if scaled:
                nodes.append(self._node("Cast", tensor, [stored], None))
                nodes[-1].attribute.append(helper.make_attribute("to", self._model.element_type(tensor)))
                stored = nodes[-1].output[0]
        if scaled:
            nodes += self._scaled(tensor, stored, constant, point, result)
        else:
            inputs = [stored, *self._parameters(tensor, point, grid)]
            nodes.append(self._node("DequantizeLinear", tensor, inputs, point, result))
        self._place(tensor, nodes)
        return str(nodes[-1].output[0])

    def _scaled(
        self, tensor: str, stored: str, constant: AnyArray, point: QuantPoint, result: str
    ) -> list[onnx.NodeProto]:
        """Return the nodes of scale * (q - zero_point) in the constant's float type."""
        nodes: list[onnx.NodeProto] = []
        scale = spread(self._float(tensor, point.scale), constant.shape, point)
        if np.any(point.zero_point):
            zero_point = spread(point.zero_point, constant.shape, point).astype(constant.dtype)
            shift = self._array(f"{tensor}/zero_point", zero_point)
            nodes.append(self._node("Sub", tensor, [stored, shift], None))
            stored = nodes[-1].output[0]
        factors = [stored, self._array(f"{tensor}/scale", scale)]
        return [*nodes, self._node("Mul", tensor, factors, None, result)]

    def _write_dynamic(self, tensor: str, source: str, result: str) -> str:
        quantize = self._node("DynamicQuantizeLinear", tensor, [source], None)
        quantize.output.extend(
            self._model.names.fresh(f"{tensor}/{part}") for part in ("scale", "zero_point")
        )
        dequantize = self._node("DequantizeLinear", tensor, list(quantize.output), None, result)
        self._place(tensor, [quantize, dequantize])
        return str(dequantize.output[0])

    def _place(self, tensor: str, nodes: list[onnx.NodeProto]) -> None:
        position = self._model.positions.get(tensor)
        target = self._first if position is None else self._behind.setdefault(position, [])
        target.extend(nodes)

    def _node(
        self, op: str, tensor: str, inputs: list[str], point: QuantPoint | None, result: str = ""
    ) -> onnx.NodeProto:
        name = self._model.names.fresh(f"{tensor}/{op}")
        output = result or self._model.names.fresh(f"{tensor}/{op}_out")
        node = helper.make_node(op, inputs, [output], name=name)
        if point is not None and point.scale.ndim:
            node.attribute.append(helper.make_attribute("axis", 1 if point.axis is None else point.axis))
            if point.block_size:
                node.attribute.append(helper.make_attribute("block_size", point.block_size))
        return node

    def _clip(self, tensor: str, source: str, point: QuantPoint) -> list[onnx.NodeProto]:
        if not clipped(point):
            return []
        ends = [self._array(f"{tensor}/{end}", value) for end, value in self._ends(tensor, point)]
        return [self._node("Clip", tensor, [source, *ends], None)]

    def _ends(self, tensor: str, point: QuantPoint) -> Iterable[tuple[str, AnyArray]]:
        low, high = real_range(point)
        return (("low", self._float(tensor, low)), ("high", self._float(tensor, high)))

    def _parameters(self, tensor: str, point: QuantPoint, grid: Grid) -> tuple[str, str]:
        scale = self._array(f"{tensor}/scale", self._float(tensor, point.scale))
        return scale, self._integers(f"{tensor}/zero_point", point.zero_point + grid.offset, grid)

    def _float(self, tensor: str, values: AnyArray) -> AnyArray:
        """Return ``values`` in the tensor's float type, which QuantizeLinear needs for its scale."""
        dtype = helper.tensor_dtype_to_np_dtype(self._model.element_type(tensor))
        cast: AnyArray = np.asarray(values).astype(dtype)
        if not (np.all(np.isfinite(cast)) and np.all((cast == 0) == (np.asarray(values) == 0))):
            raise PlanError(
                f"the scale of '{tensor}' does not fit its float type",
                seen=f"{np.ravel(values)[:4]} as {dtype}",
                fix="keep this tensor in float32",
            )
        return cast

    def _stored(self, tensor: str, constant: AnyArray, point: QuantPoint, grid: Grid) -> str:
        return self._integers(f"{tensor}/quantized", quantize_constant(constant, point), grid)

    def _array(self, wish: str, values: AnyArray) -> str:
        name = self._model.names.fresh(wish)
        return self._model.add_initializer(numpy_helper.from_array(np.asarray(values, order="C"), name))

    def _integers(self, wish: str, values: AnyArray, grid: Grid) -> str:
        if grid.dtype not in _PACKED:
            return self._array(wish, np.asarray(values).astype(grid.dtype))
        name = self._model.names.fresh(wish)
        flat = np.ravel(values).tolist()
        return self._model.add_initializer(
            helper.make_tensor(name, _PACKED[grid.dtype], np.shape(values), flat)
        )

    def assemble(self) -> None:
        """Put the new nodes into topological order and drop unread initialisers."""
        nodes = list(self._first)
        for position, node in enumerate(self._model.graph.node):
            nodes.append(node)
            nodes.extend(self._behind.get(position, ()))
        self._model.replace_nodes(nodes)
        self._model.drop_unused_initializers()


def _key(point: QuantPoint) -> object:
    """Return a key that is equal for points that share one pair."""
    settings = {k: v for k, v in point.settings().items() if k not in ("tensor", "node", "input_index")}
    return (tuple(settings.items()), point.scale.tobytes(), point.zero_point.tobytes())
