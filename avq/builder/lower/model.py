"""Editable copy of the float model: constants, element types, readers, operator set."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import onnx
from onnx import helper, numpy_helper

from avq.builder.graph.edit import FreshNames, all_nodes, replace_nodes
from avq.builder.graph.opset import opset_of
from avq.errors import PlanError
from avq.types import AnyArray

#: Suffix of the name of a tensor in FP16.
FP16_SUFFIX = "/fp16"
FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
)


class Model:
    """Private copy of ``proto`` for the writers; the caller's model never changes."""

    def __init__(self, proto: onnx.ModelProto, *, opset: int = 0) -> None:
        self.proto = _at_least(proto, opset)
        self.graph = self.proto.graph
        self.names = FreshNames(self.graph)
        self.initializers = {tensor.name: tensor for tensor in self.graph.initializer}
        self.shared: dict[str, str] = {}  # initialisers that unpack several constants
        self.nodes = {node.name: node for node in self.graph.node}
        self.outputs = {value.name for value in self.graph.output}
        self.inputs = {value.name for value in self.graph.input}
        # Of the file as it was read: writers rename outputs and still need their producers.
        self.positions = {name: i for i, node in enumerate(self.graph.node) for name in node.output if name}

    @cached_property
    def constant_nodes(self) -> dict[str, onnx.TensorProto]:
        """Tensors written by Constant nodes."""
        nodes = (n for n in self.graph.node if n.op_type == "Constant")
        return {n.output[0]: a.t for n in nodes for a in n.attribute if a.name == "value"}

    @cached_property
    def producers(self) -> dict[str, onnx.NodeProto]:
        return {name: node for node in self.graph.node for name in node.output if name}

    @cached_property
    def readers(self) -> dict[str, list[tuple[onnx.NodeProto, int]]]:
        """tensor -> (node, input index) of everything in the main graph that reads it."""
        table: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in self.graph.node:
            for index, name in enumerate(node.input):
                if name:
                    table.setdefault(name, []).append((node, index))
        return table

    @cached_property
    def element_types(self) -> dict[str, int]:
        """tensor -> ONNX element type, where the file declares it; inferred when the model has 16-bit floats."""
        has_fp16 = any(t.data_type == onnx.TensorProto.FLOAT16 for t in self.graph.initializer)
        graph = onnx.shape_inference.infer_shapes(self.proto).graph if has_fp16 else self.graph
        known = {
            v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)
        }
        return {**known, **{name: t.data_type for name, t in self.initializers.items()}}

    def element_type(self, tensor: str) -> int:
        """Return the ONNX element type of ``tensor``; float32 where nothing is known."""
        return self.element_types.get(tensor) or onnx.TensorProto.FLOAT

    def constant(self, tensor: str) -> AnyArray | None:
        """Return the value of an initialiser or Constant node, else None."""
        proto = self.initializers.get(tensor) or self.constant_nodes.get(tensor)
        return None if proto is None else numpy_helper.to_array(proto)

    def add_initializer(self, tensor: onnx.TensorProto) -> str:
        self.graph.initializer.append(tensor)
        self.initializers[tensor.name] = tensor
        return str(tensor.name)

    def replace_constant(self, name: str, array: AnyArray) -> None:
        """Replace the value of a constant; its dtype stays.

        Raises:
            PlanError: there is no such constant, or its shape differs.
        """
        old = self.constant(name)
        if old is None or old.shape != array.shape:
            raise PlanError(
                f"the override of '{name}' does not fit",
                seen="no such constant" if old is None else f"shape {array.shape}, wanted {old.shape}",
                fix="overrides replace constants of the float graph, shape by shape",
            )
        new = numpy_helper.from_array(np.ascontiguousarray(array.astype(old.dtype)), name)
        (self.initializers.get(name) or self.constant_nodes[name]).CopyFrom(new)

    def drop_unused_initializers(self) -> None:
        """Remove initialisers that no node and no output needs."""
        used = {name for node in all_nodes(self.graph) for name in node.input} | self.outputs
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        if len(kept) < len(self.graph.initializer):
            del self.graph.initializer[:]
            self.graph.initializer.extend(kept)

    def replace_nodes(self, nodes: list[onnx.NodeProto]) -> None:
        """Make ``nodes``, old ones and new, the nodes of the graph."""
        replace_nodes(self.graph, nodes)


def _at_least(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    if opset_of(proto) >= opset:
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        return copy
    try:
        raised = onnx.version_converter.convert_version(proto, opset)
    except Exception as error:  # the converter raises bare RuntimeError and its own types
        raise PlanError(
            f"the plan needs opset {opset} and the model cannot be raised to it",
            seen=f"opset {opset_of(proto)}: {str(error)[:200]}",
            fix=f"export the model with opset {opset} or newer",
        ) from error
    raised.ir_version = max(raised.ir_version, helper.find_min_ir_version_for(list(raised.opset_import)))
    return raised
