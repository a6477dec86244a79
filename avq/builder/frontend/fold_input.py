"""The picture's cast, scale, mean and std written into the graph: its input becomes uint8."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from avq.builder.graph.edit import fresh_name, rename_reads, replace_nodes, set_constant, unused_name
from avq.builder.graph.inputs import dims
from avq.builder.graph.model import FloatModel, view_of
from avq.errors import ModelError
from avq.types import F32, F64, U8, PreprocessSpec


def fold_input(model: FloatModel, spec: PreprocessSpec) -> FloatModel:
    """The network that takes the uint8 picture: Cast, then x * gain + shift per channel, then the rest.

    (x * scale - mean) / std is one Mul and one Add; either is left out where it changes nothing.
    Every later step (plan, calibration, lowering, reference) is bound to this graph.

    Raises:
        ModelError: the input is not one picture of the spec's size.
    """
    picture = _picture(model, spec)
    if picture.type.tensor_type.elem_type == TensorProto.UINT8:
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    _prepend(proto.graph, _gain_and_shift(spec))
    return FloatModel(view_of(proto), proto, model.messages)


def normalise_picture(tensor: U8, spec: PreprocessSpec) -> F32:
    """What the folded graph computes from its picture: (1, 3, h, w) float32 for the graph before folding."""
    gain, shift = (part.astype(np.float32).reshape(1, 3, 1, 1) for part in _gain_and_shift(spec))
    return tensor * gain + shift


def _picture(model: FloatModel, spec: PreprocessSpec) -> onnx.ValueInfoProto:
    picture: onnx.ValueInfoProto = model.proto.graph.input[0]
    wanted = [1, 3, spec.height_px, spec.width_px]
    if dims(picture) != wanted:
        raise ModelError(
            f"the input '{picture.name}' does not take the picture that the preprocessing makes",
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
