"""Element types and shapes by ONNX's own operator definitions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import onnx
from onnx import shape_inference

from avq.builder.graph.edit import sort_nodes
from avq.errors import ModelError

#: Larger constants cannot be shapes; inference reads no other values.
_SHAPE_BYTES = 4096
_DATA = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")
_LINE = re.compile(r"\(op_type:\s*(\w+)(?:, node name: (.*?))?\):\s*(?:\[(\w+)\]\s*)?(.+)")


@dataclass(frozen=True)
class Inferred:
    """What ONNX's inference says of a graph.

    Attributes:
        types: tensor -> TensorProto type.
        shapes: tensor -> sizes, None for unknown ones.
        complaint: the first rule of ONNX that the graph breaks; empty when it breaks none.
        about_types: the complaint is of element types, not of shapes.
        place: the node that it is about, or its operator.
    """

    types: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, tuple[int | None, ...]] = field(default_factory=dict)
    complaint: str = ""
    about_types: bool = False
    place: str = ""


def infer(proto: onnx.ModelProto) -> Inferred:
    """Types and shapes of every tensor; declared shapes of inner tensors and outputs are not believed."""
    try:
        bare = _undeclared(proto)
    except ModelError:  # reads what nothing makes, or a cycle: rules of their own say so
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
    operator, node, kind, said = _first(complaint)
    return Inferred(
        {name: element for name, element in types.items() if element},
        shapes,
        said[:300],
        kind == "TypeInferenceError" or "type" in said,
        node or operator,
    )


def _first(complaint: str) -> tuple[str, str, str, str]:
    """Operator, node, kind and text of the first one that is no consequence of an unknown type before it."""
    lines = [found.groups(default="") for found in _LINE.finditer(complaint)]
    operator, node, kind, said = next((line for line in lines if "instead is null" not in line[3]), [""] * 4)
    return operator, node, kind, said if lines else complaint.strip()


def _undeclared(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A sorted copy without weights and stale declarations: exporters leave wrong shapes, runtimes mend them."""
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
    except Exception:  # nothing can be known of such a graph; the complaint stands
        return bare


def _sizes(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)
