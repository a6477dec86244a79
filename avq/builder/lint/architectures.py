"""What the GPUs of one architecture lack; asked only of architectures that are named.

Found by building such networks with TensorRT for RTX 1.7 for each of its architectures; all but Turing's are alike.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import NodeProto, TensorProto

from avq.builder.lint.graph import LABEL, LintGraph, grid_type, type_name
from avq.builder.lint.rule import Hit, error

_RTX = ("tensorrt-rtx",)
#: Architecture -> element types of which one anywhere refuses the whole model.
_NO_TYPES = {"sm75": (TensorProto.BFLOAT16, TensorProto.INT4)}
#: Architecture -> element types in which it has no matrix product, whatever its inputs were made from.
_NO_PRODUCTS = {"sm75": (TensorProto.FLOAT,)}
_PRODUCTS = ("MatMul", "Gemm", "Einsum", "Attention", "LSTM", "GRU", "RNN")


@error(
    53,
    _RTX,
    "an architecture that was asked for has no instructions for this type, and its builder refuses the whole model",
    "8 bits or float16 in its place (another --strategy), or --gpu-arch without this architecture",
)
def _missing_types(graph: LintGraph) -> Iterator[Hit]:
    for architecture in graph.architectures:
        for kind in _NO_TYPES.get(architecture, ()):
            found = [node for node in graph.nodes if kind in _types_of(graph, node)]
            if found:
                yield found[0], f"{type_name(kind)} at {len(found)} nodes, {architecture}"


def _types_of(graph: LintGraph, node: NodeProto) -> set[int]:
    """Of its results, and of the integers of a Q or DQ."""
    integers = {grid_type(graph, node)} if node.op_type in LABEL else set()
    return integers | {graph.element(name) for name in node.output if name}


@error(
    54,
    _RTX,
    "an architecture that was asked for has no matrix product of this type",
    "float16 on both sides, as avq build writes it where values fit, or --gpu-arch without this architecture",
)
def _missing_products(graph: LintGraph) -> Iterator[Hit]:
    for architecture in graph.architectures:
        missing = _NO_PRODUCTS.get(architecture, ())
        for node in graph.of_type(*_PRODUCTS):
            kind = graph.element(node.input[0])
            if kind in missing:
                yield node, f"{node.op_type} in {type_name(kind)}, {architecture}"
