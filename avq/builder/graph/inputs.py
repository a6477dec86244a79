"""Give the model one picture input of a fixed size: batch, spatial size, layout, element type."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from avq.builder.graph.edit import (
    attribute,
    dims,
    fresh_name,
    rename_reads,
    replace_nodes,
    set_constant,
    subgraphs,
)
from avq.builder.graph.extra_inputs import bind, drop_unread, kinds_of
from avq.errors import ModelError
from avq.types import AnyArray


def drop_listed_initializers(graph: onnx.GraphProto) -> None:
    """Remove weights from the graph inputs, where IR version 3 lists them."""
    weights = {t.name for t in graph.initializer} | {s.values.name for s in graph.sparse_initializer}
    kept = [i for i in graph.input if i.name not in weights]
    del graph.input[:]
    graph.input.extend(kept)


@dataclass(frozen=True)
class FixedInputs:
    """What `fix_inputs` did.

    Attributes:
        messages: a line per change.
        bound: values of the file's inputs that are constants now, or that nothing reads.
        offset: the picture input of the file takes pixel values minus this.
    """

    messages: list[str]
    bound: dict[str, AnyArray]
    offset: int = 0


def fix_inputs(model: onnx.ModelProto, size_px: tuple[int, int] | None) -> FixedInputs:
    """Leave one picture input of static shape, uint8 or float32, in place.

    Args:
        model: its initialisers are not listed as inputs.
        size_px: (width, height) for dynamic spatial sizes.

    Raises:
        ModelError: no input, an input beside the picture of unknown meaning, or a size that is not known.
    """
    graph = model.graph
    messages, bound = drop_unread(graph)
    picture = _picture(graph)
    kinds = kinds_of(graph, picture)
    messages += _with_batch(graph, picture)
    messages += _to_channels_first(graph, picture)
    messages += _fix_batch(picture)
    messages += _fix_size(graph, picture, size_px)
    if kinds:
        height, width = dims(picture)[2:]
        remarks, values = bind(model, kinds, (width, height))
        messages, bound = messages + remarks, bound | values
        picture = graph.input[0]
    remarks, offset = _to_plain_type(graph, picture)
    return FixedInputs(messages + remarks, bound, offset)


def _picture(graph: onnx.GraphProto) -> onnx.ValueInfoProto:
    """The input that takes the picture: the only one, or the only one of four axes and three channels."""
    inputs = list(graph.input)
    if len(inputs) > 1:
        four = [i for i in inputs if len(dims(i)) == 4]
        inputs = [i for i in four if 3 in (dims(i)[1], dims(i)[3])] or four
        inputs = inputs or [i for i in graph.input if len(dims(i)) == 3 and dims(i)[0] == 3]
    if len(inputs) != 1:
        seen = "; ".join(f"{i.name} {dims(i)}" for i in graph.input) or "no inputs"
        what = f"the model has {len(graph.input)} inputs; avq feeds one picture"
        raise ModelError(what, seen=seen, fix="export it with one picture as its only input")
    if not inputs[0].type.tensor_type.HasField("shape"):
        raise ModelError(
            f"the input '{inputs[0].name}' has no shape", fix="export it with a declared input shape"
        )
    picture: onnx.ValueInfoProto = inputs[0]
    return picture


#: Integers that hold every pixel value.
_WHOLE = frozenset(
    {TensorProto.INT16, TensorProto.UINT16, TensorProto.INT32, TensorProto.UINT32}
    | {TensorProto.INT64, TensorProto.UINT64}
)
#: An int8 picture is pixel values minus this.
INT8_OFFSET = 128


def _to_plain_type(graph: onnx.GraphProto, picture: onnx.ValueInfoProto) -> tuple[list[str], int]:
    """Turn the picture input into uint8 for integer networks, else float32, with a Cast to the old type.

    Returns:
        Messages, and what an int8 input has less than a pixel value.
    """
    kind = picture.type.tensor_type.elem_type
    if kind in (TensorProto.FLOAT, TensorProto.UINT8):
        return [], 0
    name = TensorProto.DataType.Name(kind).lower()
    if kind in _WHOLE:
        _cast_input(graph, picture, TensorProto.UINT8, kind)
        return [f"{name} input turned into uint8: it takes pixel values"], 0
    if kind == TensorProto.INT8:
        _cast_input(graph, picture, TensorProto.UINT8, kind, offset=INT8_OFFSET)
        return [f"int8 input turned into uint8: it takes pixel values minus {INT8_OFFSET}"], INT8_OFFSET
    if kind in (TensorProto.DOUBLE, TensorProto.BFLOAT16, TensorProto.FLOAT16):
        _cast_input(graph, picture, TensorProto.FLOAT, kind)
        return [f"{name} input turned into float32"], 0
    raise ModelError(
        f"the input '{picture.name}' takes {name}, which holds no picture",
        seen=f"'{picture.name}' {name} {dims(picture)}",
        fix="export it with a float32 or uint8 picture as its input",
    )


def take_float32(graph: onnx.GraphProto) -> None:
    """Let bfloat16 inputs take float32, which numpy has, and cast it."""
    for value in graph.input:
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            _cast_input(graph, value, TensorProto.FLOAT, TensorProto.BFLOAT16)


def _cast_input(
    graph: onnx.GraphProto, picture: onnx.ValueInfoProto, new: int, old: int, *, offset: int = 0
) -> None:
    """Give ``picture`` the type ``new``; its readers get it in the type ``old``, minus ``offset``."""
    cast = fresh_name(graph, f"{picture.name}_cast")
    rename_reads(graph, {picture.name: cast})
    picture.type.tensor_type.elem_type = new
    nodes = [helper.make_node("Cast", [picture.name], [cast], name=cast, to=old)]
    if offset:
        wide, less = (fresh_name(graph, f"{picture.name}_{role}") for role in ("int32", "signed"))
        by = set_constant(graph, fresh_name(graph, f"{less}_by"), np.array(offset, np.int32))
        nodes = [
            helper.make_node("Cast", [picture.name], [wide], name=wide, to=TensorProto.INT32),
            helper.make_node("Sub", [wide, by], [less], name=less),
            helper.make_node("Cast", [less], [cast], name=cast, to=old),
        ]
    replace_nodes(graph, [*nodes, *graph.node])


def _set_dims(value: onnx.ValueInfoProto, shape: list[int]) -> None:
    kind = value.type.tensor_type.elem_type
    value.CopyFrom(helper.make_tensor_value_info(value.name, kind, shape))


def _with_batch(graph: onnx.GraphProto, picture: onnx.ValueInfoProto) -> list[str]:
    """Turn a (3, h, w) input, as torchvision exports it, into (1, 3, h, w) and a Squeeze."""
    shape = dims(picture)
    if len(shape) != 3 or shape[0] != 3:
        return []
    _set_dims(picture, [1, *shape])
    alone = fresh_name(graph, f"{picture.name}_alone")
    rename_reads(graph, {picture.name: alone})
    axes = set_constant(graph, fresh_name(graph, f"{alone}_axes"), np.array([0], np.int64))
    graph.node.insert(0, helper.make_node("Squeeze", [picture.name, axes], [alone], name=alone))
    return ["a batch axis of 1 added to the input"]


def _fix_batch(picture: onnx.ValueInfoProto) -> list[str]:
    shape = dims(picture)
    if not shape or shape[0] == 1:
        return []
    if shape[0] > 1 and len(shape) == 4:
        raise ModelError(
            f"the input '{picture.name}' takes {shape[0]} pictures at once",
            seen=f"shape {shape}",
            fix="export the model with batch size 1 (or a dynamic batch)",
        )
    if shape[0] == -1:
        _set_dims(picture, [1, *shape[1:]])
        return ["dynamic batch fixed to 1"]
    return []


def _fix_size(
    graph: onnx.GraphProto, picture: onnx.ValueInfoProto, size_px: tuple[int, int] | None
) -> list[str]:
    shape = dims(picture)
    if len(shape) != 4:
        if -1 in shape:
            raise ModelError(f"the input '{picture.name}' has no fixed shape", seen=f"{shape}", fix="fix it")
        return []
    fixed = list(shape)
    if fixed[1] == -1:
        fixed[1] = _channels(graph, picture.name)
    if size_px is not None:
        if any(have not in (-1, want) for have, want in zip(shape[2:], size_px[::-1], strict=True)):
            raise ModelError(
                f"the model's input is {shape[3]}x{shape[2]} px, not {size_px[0]}x{size_px[1]} px",
                seen=f"'{picture.name}' {shape}",
                fix="leave width_px and height_px out of the --preprocess file",
            )
        fixed[2:] = [size_px[1], size_px[0]]
    if -1 in fixed:
        raise ModelError(
            "the model takes pictures of any size; avq needs one fixed size",
            seen=f"input '{picture.name}' {shape} (-1: dynamic)",
            fix='write size.json with {"width_px": 640, "height_px": 640} and give it with --preprocess size.json; '
            "the rest of the preprocessing may stand there too, or is found",
        )
    if fixed == shape:
        return []
    _set_dims(picture, fixed)
    return [f"input size fixed to {fixed[3]}x{fixed[2]} px"] if shape[2:] != fixed[2:] else []


def _channels(graph: onnx.GraphProto, name: str) -> int:
    weights = {t.name: list(t.dims) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv" and node.input[0] == name and node.input[1] in weights:
            group = attribute(node, "group", 1)
            return int(weights[node.input[1]][1]) * int(group)
    return 3


def _to_channels_first(graph: onnx.GraphProto, picture: onnx.ValueInfoProto) -> list[str]:
    """Turn a (1, h, w, 3) input, as TensorFlow exports it, into (1, 3, h, w) and a Transpose."""
    shape = dims(picture)
    if len(shape) != 4 or shape[3] != 3 or shape[1] == 3:
        return []
    _set_dims(picture, [shape[0], 3, shape[1], shape[2]])
    rows = fresh_name(graph, f"{picture.name}_channels_last")
    rename_reads(graph, {picture.name: rows})
    transpose = helper.make_node("Transpose", [picture.name], [rows], name=rows, perm=[0, 2, 3, 1])
    graph.node.insert(0, transpose)
    return ["channels-last input turned into channels-first"]


def fp16_to_fp32(model: onnx.ModelProto) -> list[str]:
    """Turn float16 weights, casts and tensors into float32, in subgraphs too; return messages."""
    changed = _graph_to_float(model.graph)
    return [f"float16 model turned into float32 ({changed} tensors)"] if changed else []


def _graph_to_float(graph: onnx.GraphProto) -> int:
    changed = 0
    for tensor in graph.initializer:
        changed += _tensor_to_float(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        if kind.elem_type == TensorProto.FLOAT16:
            kind.elem_type = TensorProto.FLOAT
            changed += 1
    for node in graph.node:
        for item in node.attribute:
            if item.HasField("t"):
                changed += _tensor_to_float(item.t)
            elif item.name in ("to", "dtype", "output_dtype") and item.i == TensorProto.FLOAT16:
                item.i = TensorProto.FLOAT
        changed += sum(_graph_to_float(body) for body in subgraphs(node))
    return changed


def _tensor_to_float(tensor: onnx.TensorProto) -> int:
    if tensor.data_type != TensorProto.FLOAT16:
        return 0
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    return 1
