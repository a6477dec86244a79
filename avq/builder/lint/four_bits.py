"""4-bit integers, for which TensorRT's builder has fewer types and kernels than for 8-bit ones.

Found by building such networks with TensorRT for RTX 1.7; what stands beside them is the matter of `both_sides`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from onnx import NodeProto, TensorProto

from avq.builder.lint.graph import LABEL, LintGraph, attribute, grid_type, type_name
from avq.builder.lint.rule import TRT, Hit, error, warning

#: What 4-bit integers may pass between Q and DQ.
_RESHAPING = frozenset({"Identity", "Reshape", "Flatten", "Transpose"})


@error(
    47,
    TRT,
    "scales and results of 4-bit integers differ in their float type: the builder infers the type from the scales",
    "scales in the type of the result, without output_dtype: float16 where the reader runs in it",
)
def _other_side(graph: LintGraph) -> Iterator[Hit]:
    for node in _four_bit(graph, graph.dequantizers()):
        scale = graph.element(node.input[1])
        result = attribute(node, "output_dtype", 0) or scale
        if scale and result != scale:
            yield node, f"scales {type_name(scale)}, result {type_name(result)}"


@error(48, TRT, "4-bit integers are odd in number, and stored in pairs", "8 bits for this tensor")
def _odd(graph: LintGraph) -> Iterator[Hit]:
    for node in _four_bit(graph, graph.linears):
        shape = graph.shape(node.input[0])
        if shape is not None and None not in shape and math.prod(d or 0 for d in shape) % 2:
            yield node, f"{list(shape)}"


@error(
    51,
    TRT,
    "integers are used without DequantizeLinear, or moved on their way to it by what moves floats only",
    "put DequantizeLinear right behind constants; move and cast floats",
)
def _used_integers(graph: LintGraph) -> Iterator[Hit]:
    for name, readers in graph.readers.items():
        kind = graph.element(name)
        if graph.is_constant(name) and kind in (TensorProto.INT8, TensorProto.INT4):
            wrong = [r for r in readers if r.op_type not in LABEL]
        elif kind == TensorProto.INT4:
            wrong = [r for r in readers if r.op_type not in LABEL and r.op_type not in _RESHAPING]
        else:
            continue
        for reader in wrong:
            yield reader, f"reads {name}, {type_name(kind)}"


@warning(
    52,
    TRT,
    "data in 4 bits: no kernel multiplies it, and releases of TensorRT 10 take 4-bit weights only",
    "8 bits for data",
)
def _four_bit_data(graph: LintGraph) -> Iterator[Hit]:
    for node in _four_bit(graph, graph.quantizers()):
        if graph.on_activation(node):
            yield node, node.input[0]


def _four_bit(graph: LintGraph, nodes: Iterator[NodeProto] | list[NodeProto]) -> Iterator[NodeProto]:
    return (node for node in nodes if grid_type(graph, node) == TensorProto.INT4)
