"""The model as lint rules read it: producers, readers, constants, element types and shapes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import onnx
from onnx import TensorProto, numpy_helper, shape_inference

from avq.builder.graph.edit import all_graphs, constant_tensor, int_attribute, sort_nodes
from avq.builder.graph.model import inline_functions
from avq.builder.graph.opset import opset_of
from avq.errors import ModelError
from avq.types import AnyArray

#: Larger constants cannot be shapes; inference reads no other values.
_SHAPE_BYTES = 4096
_DATA = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")
_LINE = re.compile(r"\(op_type:\s*(\w+)(?:, node name: (.*?))?\):\s*(?:\[(\w+)\]\s*)?(.+)")


@dataclass(frozen=True)
class Inferred:
    """Result of ONNX's shape and type inference.

    Attributes:
        types: tensor -> TensorProto type.
        shapes: tensor -> sizes, None for unknown ones.
        complaint: first error of the inference; empty without one.
        about_types: the error is in element types, not in shapes.
        place: node of the error, or its operator.
    """

    types: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, tuple[int | None, ...]] = field(default_factory=dict)
    complaint: str = ""
    about_types: bool = False
    place: str = ""


def infer(proto: onnx.ModelProto) -> Inferred:
    """Infer the type and shape of every tensor, without the declared shapes of inner tensors and outputs."""
    try:
        bare = _undeclared(proto)
    except ModelError:  # a dangling tensor or a cycle, which other rules report
        return Inferred()
    complaint = ""
    try:
        known = shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # onnx raises InferenceError, ValueError, RuntimeError, by the fault
        complaint = str(error)
        known = _loosely(bare)
    values = [*known.graph.input, *known.graph.value_info, *known.graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    shapes = {v.name: _sizes(v) for v in values if v.type.tensor_type.HasField("shape")}
    operator, node, kind, text = _first(complaint)
    return Inferred(
        {name: element for name, element in types.items() if element},
        shapes,
        text[:300],
        kind == "TypeInferenceError" or "type" in text,
        node or operator,
    )


def _first(complaint: str) -> tuple[str, str, str, str]:
    """Operator, node, kind and text of the first error that does not follow from an earlier unknown type."""
    lines = [match.groups(default="") for match in _LINE.finditer(complaint)]
    operator, node, kind, text = next((line for line in lines if "instead is null" not in line[3]), [""] * 4)
    return operator, node, kind, text if lines else complaint.strip()


def _undeclared(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A sorted copy without weights and declared shapes: exporters leave wrong ones, runtimes infer them anew."""
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    for tensor in bare.graph.initializer:
        if tensor.ByteSize() > _SHAPE_BYTES:
            for name in _DATA:
                tensor.ClearField(name)
    del bare.graph.value_info[:]
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    sort_nodes(bare.graph)
    return bare


def _loosely(bare: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return shape_inference.infer_shapes(bare, data_prop=True)
    except Exception:  # no inference for this graph: only the first error is reported
        return bare


def _sizes(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)


LABEL = {"QuantizeLinear": "Q", "DequantizeLinear": "DQ"}
_MOVING = """Identity Reshape Flatten Squeeze Unsqueeze Transpose Slice Split Concat Gather Expand Tile MaxPool
    DepthToSpace SpaceToDepth"""
#: Operators that only move values: integers stay integers of the same grid.
MOVES = frozenset(_MOVING.split())


class LintGraph:
    """A model with the nodes of its subgraphs and with local functions inlined.

    Attributes:
        target: one of `TARGETS`.
        architectures: GPU architectures to check, such as "sm75".
    """

    def __init__(self, proto: onnx.ModelProto, target: str, architectures: tuple[str, ...] = ()) -> None:
        self.proto = inline_functions(proto) if proto.functions else proto
        self.target = target
        self.architectures = architectures
        graphs = list(all_graphs(self.proto.graph))
        self.nodes = [node for graph in graphs for node in graph.node]
        self.inputs = {value.name: value for graph in graphs for value in graph.input}
        self.outputs = {value.name for graph in graphs for value in graph.output}
        self.opset = opset_of(self.proto)
        self.constants = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and node.output and len(node.attribute) == 1:
                tensor = constant_tensor(node)
                if tensor is not None:
                    self.constants[node.output[0]] = tensor
        self._values: dict[str, AnyArray | None] = {}

    @cached_property
    def producers(self) -> dict[str, onnx.NodeProto]:
        return {name: node for node in self.nodes for name in node.output if name}

    @cached_property
    def readers(self) -> dict[str, list[onnx.NodeProto]]:
        table: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                table.setdefault(name, []).append(node)
        return table

    @cached_property
    def linears(self) -> list[onnx.NodeProto]:
        """Every QuantizeLinear and DequantizeLinear."""
        return [node for node in self.nodes if node.op_type in LABEL and len(node.input) > 1]

    @cached_property
    def inferred(self) -> Inferred:
        """Element types, shapes and the first error of ONNX's inference."""
        return infer(self.proto)

    def of_type(self, *op_types: str) -> Iterator[onnx.NodeProto]:
        return (node for node in self.nodes if node.op_type in op_types)

    def quantizers(self) -> Iterator[onnx.NodeProto]:
        return (node for node in self.linears if node.op_type == "QuantizeLinear")

    def dequantizers(self) -> Iterator[onnx.NodeProto]:
        return (node for node in self.linears if node.op_type == "DequantizeLinear")

    def is_constant(self, name: str) -> bool:
        return name in self.constants

    def read(self, name: str) -> AnyArray | None:
        """Constant of that name; None for other tensors and for bytes that do not fit the shape."""
        if name not in self._values:
            self._values[name] = _array(self.constants[name]) if name in self.constants else None
        return self._values[name]

    def value(self, node: onnx.NodeProto, index: int) -> AnyArray | None:
        """Constant at an input, or None."""
        return self.read(node.input[index]) if index < len(node.input) and node.input[index] else None

    def element(self, name: str) -> int:
        """TensorProto type of a tensor; 0 (UNDEFINED) when unknown."""
        if name in self.constants:
            return int(self.constants[name].data_type)
        return self.inferred.types.get(name, TensorProto.UNDEFINED)

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """Sizes of a tensor, None for unknown ones; None without a known rank."""
        if name in self.constants:
            return tuple(self.constants[name].dims)
        return self.inferred.shapes.get(name)

    def on_activation(self, node: onnx.NodeProto) -> bool:
        """Whether a Q or DQ quantizes an activation, not a constant."""
        source = node.input[0]
        if node.op_type == "DequantizeLinear" and source in self.producers:
            before = self.producers[source]
            source = before.input[0] if before.op_type == "QuantizeLinear" else source
        return not self.is_constant(source)

    def dequantizer_of(self, node: onnx.NodeProto, index: int) -> onnx.NodeProto | None:
        """DequantizeLinear that writes an input of ``node``, or None."""
        producer = self.producers.get(node.input[index]) if index < len(node.input) else None
        return producer if producer is not None and producer.op_type == "DequantizeLinear" else None

    def quantizer_before(self, dequantizer: onnx.NodeProto) -> onnx.NodeProto | None:
        """QuantizeLinear whose integers a DQ reads, or None."""
        producer = self.producers.get(dequantizer.input[0])
        return producer if producer is not None and producer.op_type == "QuantizeLinear" else None

    def unpaired(self, name: str) -> str:
        """Float tensor in front of the Q/DQ pair that writes ``name``; ``name`` itself without a pair."""
        node = self.producers.get(name)
        if node is None or node.op_type != "DequantizeLinear":
            return name
        quantizer = self.quantizer_before(node)
        return name if quantizer is None else quantizer.input[0]


#: ``Reader.op_type`` of a graph output.
GRAPH_OUTPUT = ""


@dataclass(frozen=True)
class Reader:
    """One input of a node, or a graph output.

    Attributes:
        op_type: the node's operator; `GRAPH_OUTPUT` for an output.
        name: of the node (its operator where it has no name), or of the output.
        index: of the input.
    """

    op_type: str
    name: str
    index: int


def last_readers(graph: LintGraph, name: str, *, through_any_input: bool = False) -> Iterator[Reader]:
    """Readers of the values of a tensor, behind the operators in `MOVES`.

    Args:
        graph: the model.
        name: the tensor.
        through_any_input: whether values pass through every input of a moving operator, or its first only.
    """
    waiting, seen = [name], {name}
    while waiting:
        read = waiting.pop()
        if read in graph.outputs:
            yield Reader(GRAPH_OUTPUT, read, 0)
        for node in graph.readers.get(read, []):
            if node.op_type in MOVES and (through_any_input or node.input[0] == read):
                waiting.extend(out for out in node.output if out not in seen)
                seen.update(node.output)
            else:
                yield Reader(node.op_type, node.name or node.op_type, list(node.input).index(read))


def grid_type(graph: LintGraph, node: onnx.NodeProto) -> int:
    """Integer type that a Q writes or a DQ reads; UNDEFINED when the file has none."""
    if len(node.input) > 2 and node.input[2]:
        return graph.element(node.input[2])
    if node.op_type == "QuantizeLinear":
        return int_attribute(node, "output_dtype", TensorProto.UNDEFINED)
    return graph.element(node.input[0])


def type_name(element: int) -> str:
    """Lower-case name of a TensorProto type, such as "int8"."""
    return str(TensorProto.DataType.Name(element)).lower()


def _array(tensor: onnx.TensorProto) -> AnyArray | None:
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, OSError):  # bytes that do not fit, or that lie in a file not read
        return None
