"""Scales and zero points: the numbers of Q/DQ pairs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto, TensorProto

from avq.builder.lint.graph import LintGraph, attribute, grid_type, type_name
from avq.builder.lint.rule import ALL, TRT, Hit, error, warning

_UNSIGNED = (TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT4)
_SIGNED = (TensorProto.UNDEFINED, TensorProto.INT8, TensorProto.INT4)
_WIDE = (TensorProto.INT16, TensorProto.UINT16, TensorProto.INT4, TensorProto.UINT4)


@error(
    1,
    TRT,
    "unsigned bytes are read as signed ones: values above 127 are clipped",
    "lower with encoding s8: avq build --target tensorrt",
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


@error(3, TRT, "a bias in 32-bit integers cannot be read", "keep biases in float")
def _integer_bias(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.dequantizers():
        if graph.element(node.input[0]) == TensorProto.INT32:
            yield node, f"{node.input[0]} is int32"


@error(
    4,
    ALL,
    "a scale is not a positive normal number",
    "clamp the scales of dead channels to a small positive number",
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


@error(5, TRT, "an activation has a scale per channel", "one scale per tensor for activations")
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
    "without a zero point ONNX means unsigned bytes and TensorRT reads signed ones",
    "write an int8 zero point of 0",
)
def _no_zero_point(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.quantizers():
        if (len(node.input) < 3 or not node.input[2]) and not attribute(node, "output_dtype", 0):
            yield node, "two inputs"


@error(13, ALL, "half-precision scales need opset 19", "keep scales in float32, or raise the opset")
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
    "one scale, or one for each channel along the axis, and as many zero points",
)
def _misfit(graph: LintGraph) -> Iterator[Hit]:
    for node in (n for n in graph.linears if not attribute(n, "block_size", 0)):
        seen = _why_misfit(graph, node)
        if seen:
            yield node, seen


@error(
    23,
    TRT,
    "the grid is not one of signed integers of 8 or 4 bits around zero",
    "write an int8 zero point of 0, or output_dtype INT8",
)
def _other_grid(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.linears:
        kind = grid_type(graph, node)
        bias = graph.element(node.input[0]) == TensorProto.INT32  # has a rule of its own
        if kind not in (*_SIGNED, *_UNSIGNED) and not bias:
            yield node, f"{type_name(kind)}"


@error(24, ALL, "a scale is no floating-point number", "write scales in float32")
def _integer_scale(graph: LintGraph) -> Iterator[Hit]:
    floats = (TensorProto.UNDEFINED, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    for node in graph.linears:
        kind = graph.element(node.input[1])
        if kind not in floats:
            yield node, f"{node.input[1]} is {type_name(kind)}"


@warning(
    25,
    TRT,
    "scales in half precision are rounded, and converted back to float32 by the builder",
    "opset 23, scales in float32, output_dtype FLOAT16 at DequantizeLinear",
)
def _rounded_scales(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.linears:
        four_bits = grid_type(graph, node) == TensorProto.INT4  # whose scales have the type of their result
        if graph.element(node.input[1]) == TensorProto.FLOAT16 and not four_bits:
            yield node, "float16"
            return  # one line says it for the whole file


@warning(
    26,
    TRT,
    "a bias in 8 bits is rounded to 1/127 of the largest one",
    "keep biases in float: they cost no time",
)
def _coarse_bias(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.of_type("Conv", "ConvTranspose", "Gemm"):
        bias = graph.dequantizer_of(node, 2)
        if bias is not None and graph.element(bias.input[0]) != TensorProto.INT32:
            yield node, f"{node.input[2]} comes from {bias.name or bias.op_type}"


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
    return _why_no_axis(graph.shape(node.input[0]), attribute(node, "axis", 1), scale[0] or 0)


def _why_no_axis(value: tuple[int | None, ...] | None, axis: int, scales: int) -> str:
    if value is None:
        return ""
    if not -len(value) <= axis < len(value):
        return f"axis {axis} of {len(value)} axes"
    channels = value[axis]
    return f"{scales} scales, {channels} channels along axis {axis}" if channels not in (None, scales) else ""
