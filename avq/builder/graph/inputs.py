"""Give the model one picture input of a fixed size: batch, spatial size, layout, float32."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from avq.builder.graph.edit import attribute, fresh_name, rename_reads, set_constant, subgraphs
from avq.errors import ModelError


def drop_listed_initializers(graph: onnx.GraphProto) -> None:
    """Remove weights from the graph inputs, where IR version 3 lists them."""
    weights = {t.name for t in graph.initializer} | {s.values.name for s in graph.sparse_initializer}
    kept = [i for i in graph.input if i.name not in weights]
    del graph.input[:]
    graph.input.extend(kept)


def dims(value: onnx.ValueInfoProto) -> list[int]:
    """Return the declared sizes, -1 where dynamic."""
    return [d.dim_value if d.dim_value > 0 else -1 for d in value.type.tensor_type.shape.dim]


def fix_inputs(graph: onnx.GraphProto, size_px: tuple[int, int] | None) -> list[str]:
    """Leave one input of static shape; return a message per change.

    Args:
        size_px: (width, height) for dynamic spatial sizes.

    Raises:
        ModelError: no input, several, or a size that is not known.
    """
    messages = _bind_target_sizes(graph, size_px)
    if len(graph.input) != 1:
        raise _several(graph)
    picture = graph.input[0]
    if not picture.type.tensor_type.HasField("shape"):
        raise ModelError(
            f"the input '{picture.name}' has no shape", fix="export it with a declared input shape"
        )
    messages += _with_batch(graph, picture)
    messages += _to_channels_first(graph, picture)
    messages += _fix_batch(picture)
    messages += _fix_size(graph, picture, size_px)
    return messages


def _several(graph: onnx.GraphProto) -> ModelError:
    seen = "; ".join(f"{i.name} {dims(i)}" for i in graph.input) or "no inputs"
    what = f"the model has {len(graph.input)} inputs; avq feeds one picture"
    return ModelError(what, seen=seen, fix="export it with one picture as its only input")


def _bind_target_sizes(graph: onnx.GraphProto, size_px: tuple[int, int] | None) -> list[str]:
    """Bind the (width, height) input (1, 2) int64 of DETR exports to the network size.

    Boxes are then in input pixels.
    """
    extra = [i for i in graph.input if i.type.tensor_type.elem_type == TensorProto.INT64 and _is_pair(i)]
    pictures = [i for i in graph.input if i not in extra]
    if len(extra) != 1 or len(pictures) != 1 or len(dims(pictures[0])) != 4:
        return []
    height, width = dims(pictures[0])[2:]
    if size_px is not None:
        width, height = size_px
    if min(width, height) < 1:
        return []  # the size check names what is missing
    set_constant(graph, extra[0].name, np.array([[width, height]], np.int64))
    drop_listed_initializers(graph)
    return [f"input '{extra[0].name}' bound to the network size {width}x{height}"]


def _is_pair(value: onnx.ValueInfoProto) -> bool:
    shape = dims(value)
    return len(shape) == 2 and shape[1] == 2


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
