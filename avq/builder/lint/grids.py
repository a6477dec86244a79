"""Rules on scales and zero points, per tensor, channel and block."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto, TensorProto

from avq.builder.graph.edit import int_attribute
from avq.builder.lint.graph import LintGraph, grid_type, last_readers, type_name
from avq.builder.lint.rule import ALL, TRT, Hit, error, warning

_UNSIGNED = (TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT4)
_SIGNED = (TensorProto.UNDEFINED, TensorProto.INT8, TensorProto.INT4)
_WIDE = (TensorProto.INT16, TensorProto.UINT16, TensorProto.INT4, TensorProto.UINT4)


@error(
    1,
    TRT,
    "unsigned integers are read as signed ones: values above 127 are clipped",
    "write it with encoding s8: avq build --target tensorrt",
)
def _unsigned(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.linears:
        kind = grid_type(graph, node)
        if kind in _UNSIGNED:
            yield node, f"zero point or value is {type_name(kind)}"


@error(2, TRT, "the zero point is not 0", "plan with symmetric grids: --option activations=symmetric")
def _shifted(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.linears:
        zero_point = graph.value(node, 2)
        if zero_point is not None and np.any(zero_point.astype(np.int64) != 0):
            yield node, f"zero point {int(zero_point[zero_point.astype(np.int64) != 0].flat[0])}"


@error(3, TRT, "TensorRT cannot read a 32-bit integer bias", "keep biases in float")
def _integer_bias(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.dequantizers():
        if graph.element(node.input[0]) == TensorProto.INT32:
            yield node, f"{node.input[0]} is int32"


@error(
    4,
    ALL,
    "a scale is not a positive normal number",
    "clamp the scales of channels of zeros to a small positive number",
)
def _bad_scale(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.linears:
        scale = graph.value(node, 1)
        if scale is None or not np.issubdtype(scale.dtype, np.floating):
            continue
        smallest = np.finfo(scale.dtype).tiny
        bad = ~(np.isfinite(scale) & (scale >= smallest))
        if np.any(bad):
            yield node, f"{int(bad.sum())} of {scale.size} scales, first {float(scale[bad].flat[0]):g}"


@error(5, TRT, "an activation has scales per channel", "give activations one scale per tensor")
def _activation_channels(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.linears:
        scale = graph.value(node, 1)
        if scale is not None and scale.size > 1 and graph.on_activation(node):
            yield node, f"{scale.size} scales"


@error(6, ALL, "scales per channel need opset 13", "convert the model to opset 17 or newer")
def _old_channels(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.linears:
        scale = graph.value(node, 1)
        if graph.opset < 13 and scale is not None and scale.size > 1:
            yield node, f"opset {graph.opset}"


@error(9, TRT, "scale or zero point is computed, not constant", "fold constants before exporting")
def _computed_scale(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.linears:
        names = [name for name in node.input[1:] if name and not graph.is_constant(name)]
        if names:
            yield node, ", ".join(names)


@error(
    11,
    TRT,
    "a QuantizeLinear without zero point is unsigned in ONNX and signed in TensorRT",
    "write an int8 zero point of 0",
)
def _no_zero_point(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.quantizers():
        if (len(node.input) < 3 or not node.input[2]) and not int_attribute(node, "output_dtype", 0):
            yield node, "two inputs"


@error(13, ALL, "FP16 scales need opset 19", "keep scales in float32, or raise the opset")
def _half_scales(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.linears:
        scale = graph.value(node, 1)
        if graph.opset < 19 and scale is not None and scale.dtype == np.float16:
            yield node, f"opset {graph.opset}"


@error(14, ALL, "4- and 16-bit integers need opset 21", "raise the opset to 21")
def _wide_integers(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.linears:
        kind = grid_type(graph, node)
        if graph.opset < 21 and kind in _WIDE:
            yield node, f"{type_name(kind)} at opset {graph.opset}"


@error(
    21,
    ALL,
    "scales and zero points do not fit the tensor",
    "give one scale, or one per channel along the axis, and as many zero points",
)
def _misfit(graph: LintGraph) -> Iterator[Hit]:
    for node in (n for n in graph.linears if not int_attribute(n, "block_size", 0)):
        seen = _why_misfit(graph, node)
        if seen:
            yield node, seen


@error(
    23,
    TRT,
    "the grid is not signed, of 8 or 4 bits, around zero",
    "write an int8 zero point of 0, or output_dtype INT8",
)
def _other_grid(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.linears:
        kind = grid_type(graph, node)
        bias = graph.element(node.input[0]) == TensorProto.INT32  # AVQ-L03
        if kind not in (*_SIGNED, *_UNSIGNED) and not bias:
            yield node, f"{type_name(kind)}"


@error(24, ALL, "a scale is not a floating-point number", "write scales in float32")
def _integer_scale(graph: LintGraph) -> Iterator[Hit]:
    floats = (TensorProto.UNDEFINED, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    for node in graph.linears:
        kind = graph.element(node.input[1])
        if kind not in floats:
            yield node, f"{node.input[1]} is {type_name(kind)}"


@warning(
    25,
    TRT,
    "FP16 scales are rounded, and the builder converts them back to float32",
    "write opset 23, float32 scales, and output_dtype FLOAT16 at DequantizeLinear",
)
def _rounded_scales(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.linears:
        int4 = grid_type(graph, node) == TensorProto.INT4  # whose scales have the type of their result
        if graph.element(node.input[1]) == TensorProto.FLOAT16 and not int4:
            yield node, "float16"
            return  # one finding per file


@warning(
    26,
    TRT,
    "an 8-bit bias is rounded to 1/127 of the largest one",
    "keep biases in float, which costs no time",
)
def _coarse_bias(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.of_type("Conv", "ConvTranspose", "Gemm"):
        bias = graph.dequantizer_of(node, 2)
        if bias is not None and graph.element(bias.input[0]) != TensorProto.INT32:
            yield node, f"{node.input[2]} is written by {bias.name or bias.op_type}"


def _why_misfit(graph: LintGraph, node: NodeProto) -> str:
    scale, zero_point = graph.shape(node.input[1]), None
    if len(node.input) > 2 and node.input[2]:
        zero_point = graph.shape(node.input[2])
    if scale is None or None in scale:
        return ""
    if zero_point is not None and None not in zero_point and zero_point != scale:
        return f"scale {list(scale)}, zero point {list(zero_point)}"
    if len(scale) > 1 or 0 in scale:
        return f"scale {list(scale)}"
    if not scale or scale[0] == 1:
        return ""
    return _why_no_axis(graph.shape(node.input[0]), int_attribute(node, "axis", 1), scale[0] or 0)


def _why_no_axis(value: tuple[int | None, ...] | None, axis: int, scales: int) -> str:
    if value is None:
        return ""
    if not -len(value) <= axis < len(value):
        return f"axis {axis} of {len(value)} axes"
    channels = value[axis]
    return f"{scales} scales, {channels} channels along axis {axis}" if channels not in (None, scales) else ""


# Scales per block.

_PRODUCTS = ("MatMul", "Gemm")


@error(
    22,
    TRT,
    "TensorRT cannot read these scales per block, or splits the tensor into other blocks",
    "use whole blocks of one size along one of the last two axes; for TensorRT 10 on 4-bit matrices only",
)
def _blocks(graph: LintGraph) -> Iterator[Hit]:
    for node in _blocked(graph):
        seen = _why_unread(graph, node) or _why_not_by_tensorrt_10(graph, node)
        if seen:
            yield node, seen


@error(
    50,
    TRT,
    "4-bit weights with scales per block have readers besides one matrix product: the builder crashes",
    "let one MatMul or Gemm read them as its right input; give other readers another constant",
)
def _shared_blocks(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.dequantizers():
        int4 = int_attribute(node, "block_size", 0) and grid_type(graph, node) == TensorProto.INT4
        if not int4 or _one_block(graph, node) or graph.on_activation(node):
            continue
        readers = list(last_readers(graph, node.output[0]))
        products = [reader for reader in readers if reader.op_type in _PRODUCTS and reader.index < 2]
        left = [reader.name for reader in products if reader.index == 0]
        if left:
            yield node, f"left input of {left[0]}"
        elif products and len(readers) > 1:
            yield node, f"{len(readers)} readers"


def _blocked(graph: LintGraph) -> Iterator[NodeProto]:
    return (node for node in graph.linears if int_attribute(node, "block_size", 0))


def _why_unread(graph: LintGraph, node: NodeProto) -> str:
    value, scale = graph.shape(node.input[0]), graph.shape(node.input[1])
    size = int_attribute(node, "block_size", 0)
    if value is None or scale is None or None in scale:
        return ""
    axis = int_attribute(node, "axis", 1) % max(len(value), 1)
    if len(value) < 2 or axis < len(value) - 2:
        return f"blocks along axis {axis} of {len(value)}"
    others = [v for i, v in enumerate(value) if i != axis]
    if len(scale) != len(value) or others != [s for i, s in enumerate(scale) if i != axis] or scale == value:
        return f"scale {list(scale)}, tensor {list(value)}"
    length, count = value[axis] or 0, scale[axis] or 0
    fits = count > 0 and length % count == 0 and (count == 1 <= length <= size or length // count == size)
    if not fits:
        return f"{count} blocks of {size} along {length}"
    return ""


def _why_not_by_tensorrt_10(graph: LintGraph, node: NodeProto) -> str:
    """Forms that TensorRT 10 refuses and TensorRT-RTX accepts."""
    if graph.target != "tensorrt":
        return ""
    if grid_type(graph, node) != TensorProto.INT4:
        return "8-bit integers"
    rank = len(graph.shape(node.input[0]) or (1, 1))
    return f"{rank} axes" if rank != 2 else ""


def _one_block(graph: LintGraph, node: NodeProto) -> bool:
    """Whether one block covers the whole axis."""
    scale = graph.shape(node.input[1]) or ()
    return len(scale) > 0 and scale[int_attribute(node, "axis", 1) % len(scale)] == 1
