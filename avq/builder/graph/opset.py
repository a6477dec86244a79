"""Raise old operator sets to 17: with the onnx converter, else with own adapters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, version_converter

from avq.builder.graph.edit import (
    attribute,
    drop_attributes,
    fresh_name,
    name_nodes,
    set_constant,
    sort_nodes,
)
from avq.errors import ModelError
from avq.process import STANDARD_ERROR, suppress_output
from avq.types import AnyArray

MIN_OPSET = 17
_OLDEST = 7


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the default operator set."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def raise_opset(model: onnx.ModelProto, *, converter: bool = True) -> tuple[onnx.ModelProto, list[str]]:
    """Return the model at opset >= 17, with a message when that changed it.

    Raises:
        ModelError: older than opset 7, or an operator has no known newer form.
    """
    version = opset_of(model)
    if version >= MIN_OPSET:
        return model, []
    if version < _OLDEST:
        raise ModelError(
            f"the model's operator set is too old to be raised to {MIN_OPSET}",
            seen=f"opset {version}",
            fix=f"export it again with opset {MIN_OPSET} or newer",
        )
    message = f"operator set raised from {version} to {MIN_OPSET}"
    if not converter:
        return _by_hand(model, version, RuntimeError("the converter is not used")), [message]
    try:
        with suppress_output(STANDARD_ERROR):
            raised = version_converter.convert_version(model, MIN_OPSET)
            onnx.checker.check_model(raised)
    except Exception as error:  # the converter raises RuntimeError, ConvertError, ValidationError ...
        return _by_hand(model, version, error), [f"{message} (by hand: the onnx converter refused)"]
    del raised.metadata_props[:]
    raised.metadata_props.extend(model.metadata_props)
    return raised, [message]


def _by_hand(model: onnx.ModelProto, version: int, cause: Exception) -> onnx.ModelProto:
    raised = onnx.ModelProto()
    raised.CopyFrom(model)
    kept = [entry for entry in raised.opset_import if entry.domain not in ("", "ai.onnx")]
    del raised.opset_import[:]
    raised.opset_import.extend([helper.make_opsetid("", MIN_OPSET), *kept])
    for node in list(raised.graph.node):
        if node.domain in ("", "ai.onnx"):
            _raise_node(raised.graph, node, version, cause)
    name_nodes(raised.graph)
    sort_nodes(raised.graph)
    return raised


def _raise_node(graph: onnx.GraphProto, node: onnx.NodeProto, version: int, cause: Exception) -> None:
    adapt = _ADAPTERS.get(node.op_type)
    if adapt is not None:
        since, change = adapt
        if version < since:
            change(graph, node)
    schema_op = node.op_type
    try:
        schema = onnx.defs.get_schema(schema_op, MIN_OPSET)
    except onnx.defs.SchemaError:
        schema = None
    strange = schema is None or {a.name for a in node.attribute} - set(schema.attributes)
    if strange:
        raise ModelError(
            f"node '{node.name}' ({node.op_type}) has no form in opset {MIN_OPSET}",
            seen=f"opset {version}; {str(cause).strip().splitlines()[0] if str(cause).strip() else cause!r}",
            fix=f"export the model again with opset {MIN_OPSET} or newer",
        ) from None


Adapter = Callable[[onnx.GraphProto, onnx.NodeProto], None]


def _to_input(name: str, index: int) -> Adapter:
    """Return an adapter that turns an integer-list attribute into an input."""

    def change(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
        value = attribute(node, name)
        if value is None:
            return
        drop_attributes(node, name)
        _put_input(graph, node, index, np.atleast_1d(np.asarray(value, np.int64)), name)

    return change


def _put_input(graph: onnx.GraphProto, node: onnx.NodeProto, index: int, value: AnyArray, role: str) -> None:
    while len(node.input) <= index:
        node.input.append("")
    node.input[index] = set_constant(graph, fresh_name(graph, f"{node.output[0]}_{role}"), value)


def _slice(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    for index, name in ((1, "starts"), (2, "ends"), (3, "axes")):
        _to_input(name, index)(graph, node)


def _clip(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    for index, name in ((1, "min"), (2, "max")):
        value = attribute(node, name)
        if value is not None:
            _put_input(graph, node, index, np.float32(value).reshape(()), name)
    drop_attributes(node, "min", "max")


def _pad(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    _to_input("pads", 1)(graph, node)
    value = attribute(node, "value")
    if value is not None:
        _put_input(graph, node, 2, np.float32(value).reshape(()), "value")
    drop_attributes(node, "value")


def _softmax(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    """Write Flatten, Softmax, Reshape: before 13 the axes from ``axis`` (default 1) on counted as one."""
    axis = attribute(node, "axis", 1)
    drop_attributes(node, "axis")
    node.attribute.append(helper.make_attribute("axis", -1))
    if axis == -1:
        return
    source, result = node.input[0], node.output[0]
    shape, rows, done = (fresh_name(graph, f"{result}_{role}") for role in ("shape", "rows", "softmax"))
    node.input[0], node.output[0] = rows, done
    graph.node.extend(
        [
            helper.make_node("Shape", [source], [shape]),
            helper.make_node("Flatten", [source], [rows], axis=axis),
            helper.make_node("Reshape", [done, shape], [result]),
        ]
    )


def _batch_norm(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    drop_attributes(node, "spatial", "is_test")
    del node.output[1:]


def _upsample(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    scales = attribute(node, "scales")
    if scales is not None:
        _put_input(graph, node, 1, np.asarray(scales, np.float32), "scales")
    _resize(graph, node)


def _resize(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    """Write Resize 10 and Upsample, which sample asymmetrically and take no region of interest."""
    mode = attribute(node, "mode", b"nearest")
    data, scales = node.input[0], node.input[1]
    node.op_type = "Resize"
    del node.input[:]
    node.input.extend([data, "", scales])
    drop_attributes(node, "mode", "scales", "height_scale", "width_scale")
    node.attribute.extend(
        [
            helper.make_attribute("mode", mode),
            helper.make_attribute("coordinate_transformation_mode", "asymmetric"),
            helper.make_attribute("nearest_mode", "floor"),
        ]
    )


def _roi_align(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    if attribute(node, "coordinate_transformation_mode") is None:
        node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "output_half_pixel"))


def _dropout(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    """Turn Dropout into Identity, which it is at inference; one whose mask is read stays."""
    if len(node.output) > 1 and node.output[1]:
        return
    node.op_type = "Identity"
    drop_attributes(node, "ratio", "is_test", "seed")
    del node.output[1:], node.input[1:]


def _renamed(op: str) -> Adapter:
    def change(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
        node.op_type = op

    return change


#: Operator -> (opset in which its form changed, adapter).
_ADAPTERS: dict[str, tuple[int, Adapter]] = {
    "BatchNormalization": (14, _batch_norm),
    "Clip": (11, _clip),
    "Dropout": (12, _dropout),
    "Hardmax": (13, _softmax),
    "LogSoftmax": (13, _softmax),
    "Pad": (11, _pad),
    "ReduceSum": (13, _to_input("axes", 1)),
    "Resize": (11, _resize),
    "RoiAlign": (16, _roi_align),
    "Scatter": (11, _renamed("ScatterElements")),
    "Slice": (10, _slice),
    "Softmax": (13, _softmax),
    "Split": (13, _to_input("split", 1)),
    "Squeeze": (13, _to_input("axes", 1)),
    "TopK": (10, _to_input("k", 1)),
    "Unsqueeze": (13, _to_input("axes", 1)),
    "Upsample": (11, _upsample),
}
