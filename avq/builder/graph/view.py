"""View an ONNX model as dataclasses on numpy, which plans are made from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from avq.builder.graph.opset import opset_of
from avq.types import AnyArray, GraphView, NodeView, TensorView


def view_of(model: onnx.ModelProto) -> GraphView:
    """Return the graph as dataclasses on numpy; nodes in file order, Constant nodes stay nodes."""
    graph = model.graph
    constants = {t.name: _frozen(numpy_helper.to_array(t)) for t in graph.initializer}
    inputs = tuple(tensor_view(i) for i in graph.input if i.name not in constants)
    outputs = tuple(tensor_view(o) for o in graph.output)
    known = [t for v in graph.value_info if (t := tensor_view(v)).dtype]
    nodes = tuple(_node_view(node) for node in graph.node)
    opset = opset_of(model)
    return GraphView(
        nodes=nodes,
        inputs=inputs,
        outputs=outputs,
        tensors={t.name: t for t in (*known, *inputs, *outputs)},
        constants=constants,
        opset=opset,
        digest=_digest(opset, nodes, inputs, outputs, constants),
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )


def _frozen(array: AnyArray) -> AnyArray:
    array = np.array(array)
    array.flags.writeable = False
    return array


def tensor_view(value: onnx.ValueInfoProto) -> TensorView:
    """Return name, dtype and shape; an unknown rank gives shape (-1,)."""
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return TensorView(value.name, _dtype(kind.elem_type), (-1,))
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    return TensorView(value.name, _dtype(kind.elem_type), shape)


def _dtype(elem_type: int) -> str:
    return np.dtype(helper.tensor_dtype_to_np_dtype(elem_type)).name if elem_type else ""


def _node_view(node: onnx.NodeProto) -> NodeView:
    domain = "" if node.domain == "ai.onnx" else node.domain
    attributes = {item.name: _plain(item) for item in node.attribute}
    return NodeView(node.name, node.op_type, tuple(node.input), tuple(node.output), attributes, domain)


def _plain(item: onnx.AttributeProto) -> Any:
    """Return the attribute as numpy arrays, texts and numbers."""
    value = helper.get_attribute_value(item)
    if isinstance(value, onnx.TensorProto):
        return _frozen(numpy_helper.to_array(value))
    if isinstance(value, onnx.GraphProto):
        return value.SerializeToString(deterministic=True).hex()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        return [text.decode("utf-8", "replace") for text in value]
    return value


def _digest(
    opset: int,
    nodes: Iterable[NodeView],
    inputs: Iterable[TensorView],
    outputs: Iterable[TensorView],
    constants: dict[str, AnyArray],
) -> str:
    sha = hashlib.sha256(f"{opset} {list(inputs)!r} {list(outputs)!r}".encode())
    for node in nodes:
        attributes = [(key, _stable(value)) for key, value in sorted(node.attributes.items())]
        sha.update(
            f"{node.domain} {node.op} {node.name} {node.inputs} {node.outputs} {attributes}\n".encode()
        )
    for name in sorted(constants):
        array = np.ascontiguousarray(constants[name])
        sha.update(f"{name} {array.dtype} {constants[name].shape}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def _stable(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    return repr(value)
