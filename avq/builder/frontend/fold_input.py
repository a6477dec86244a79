"""Fold the preprocessing's scale, mean and std into the graph: its input becomes uint8."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper

from avq.builder.graph.edit import dims, fresh_name, rename_reads, replace_nodes, set_constant, unused_name
from avq.builder.graph.model import FloatModel, view_of
from avq.errors import ModelError
from avq.types import F32, F64, U8, AnyArray, PreprocessSpec


def fold_input(model: FloatModel, spec: PreprocessSpec) -> FloatModel:
    """Put Cast and x * gain + shift per channel in front of the network.

    (x * scale - mean) / std is one Mul and one Add; one that changes nothing is left out. Every later step (plan,
    calibration, lowering, reference) uses this graph.

    Args:
        model: normalised float model; returned as it is when its input is uint8 already.
        spec: preprocessing, with scale, mean and std in 0..255.

    Returns:
        The model with a (1, 3, h, w) uint8 input.

    Raises:
        ModelError: the input is not one picture of the spec's size.
    """
    picture = _picture(model, spec)
    if picture.type.tensor_type.elem_type == TensorProto.UINT8:
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    _prepend(proto.graph, _gain_and_shift(spec))
    return replace(model, view=view_of(proto), proto=proto)


def served_spec(model: FloatModel, spec: PreprocessSpec) -> PreprocessSpec:
    """``spec`` as the file takes it: an integer picture input takes pixel values (int8: minus 128), unscaled."""
    if model.view.inputs[0].dtype != "uint8":
        return spec
    return replace(spec, scale=1.0, mean=(float(model.offset),) * 3, std=(1.0,) * 3)


def source_picture(model: FloatModel, tensor: U8, spec: PreprocessSpec) -> AnyArray:
    """A (1, 3, h, w) uint8 tensor as ``model`` takes it, before its input is folded."""
    dtype = model.view.inputs[0].dtype
    return tensor if dtype == "uint8" else normalise_picture(tensor, spec).astype(dtype)


def normalise_picture(tensor: U8, spec: PreprocessSpec) -> F32:
    """Apply scale, mean and std as the folded graph does.

    Args:
        tensor: (1, 3, h, w) uint8.
        spec: preprocessing.

    Returns:
        (1, 3, h, w) float32, the input of the graph before folding.
    """
    gain, shift = (part.astype(np.float32).reshape(1, 3, 1, 1) for part in _gain_and_shift(spec))
    return tensor * gain + shift


def _picture(model: FloatModel, spec: PreprocessSpec) -> onnx.ValueInfoProto:
    picture: onnx.ValueInfoProto = model.proto.graph.input[0]
    wanted = [1, 3, spec.height_px, spec.width_px]
    if dims(picture) != wanted:
        raise ModelError(
            f"the input '{picture.name}' has not the shape that the preprocessing produces",
            seen=f"input {dims(picture)}, preprocessing {wanted}",
            fix="leave width_px and height_px out of the --preprocess file; the input must be (1, 3, h, w)",
        )
    return picture


def _gain_and_shift(spec: PreprocessSpec) -> tuple[F64, F64]:
    mean, std = np.asarray(spec.mean, np.float64), np.asarray(spec.std, np.float64)
    return spec.scale / std, -mean / std


def _prepend(graph: onnx.GraphProto, affine: tuple[F64, F64]) -> None:
    picture = graph.input[0]
    name, kind = picture.name, picture.type.tensor_type.elem_type
    shape = dims(picture)
    nodes: list[onnx.NodeProto] = []
    node_names = {node.name for node in graph.node}

    def add(op: str, inputs: list[str]) -> str:
        output = fresh_name(graph, f"{name}_{op.lower()}")
        node = helper.make_node(op, inputs, [output], name=unused_name(output, node_names))
        nodes.append(node)
        graph.value_info.append(helper.make_tensor_value_info(output, kind, shape))
        return output

    values = add("Cast", [name])
    nodes[0].attribute.append(helper.make_attribute("to", kind))
    for op, array, neutral in (("Mul", affine[0], 1.0), ("Add", affine[1], 0.0)):
        if np.any(array != neutral):
            constant = fresh_name(graph, f"{name}_{op.lower()}_by")
            set_constant(graph, constant, _least(array))
            values = add(op, [values, constant])
    rename_reads(graph, {name: values})
    replace_nodes(graph, [*nodes, *graph.node])
    picture.type.tensor_type.elem_type = TensorProto.UINT8


def _least(per_channel: F64) -> F32:
    """(1, 3, 1, 1) float32, or one number for all channels where they agree."""
    same = bool(np.all(per_channel == per_channel[0]))
    values = per_channel[:1] if same else per_channel
    return values.reshape(1, -1, 1, 1).astype(np.float32)
