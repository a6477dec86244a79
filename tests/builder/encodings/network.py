"""A small network with every kind of weight that a side file scales per channel, and names that are hard to parse."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from avq.builder.graph.view import view_of
from avq.types import GraphView

#: weight -> (its shape, axis of its output channels)
WEIGHTS = {
    "stem.weight": ((4, 3, 3, 3), 0),
    "deep.weight": ((4, 1, 3, 3), 0),
    "up.weight": ((4, 6, 2, 2), 1),
    "rows.weight": ((5, 6), 0),
    "columns.weight": ((5, 7), 1),
    "product.weight": ((7, 8), 1),
}
ACTIVATIONS = (
    "picture",
    "(Unnamed Layer* 1) [Conv]: out",
    "deep:0",
    "up out",
    "flat",
    "rows",
    "columns",
    "y",
)
#: What weighted operators read.
READ_BY_WEIGHTED = ACTIVATIONS[:3] + ACTIVATIONS[4:7]


def network() -> onnx.ModelProto:
    """picture -> Conv -> depthwise Conv -> ConvTranspose -> mean -> Gemm (transB) -> Gemm -> MatMul -> y."""
    rng = np.random.default_rng(3)
    weights = [
        numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        for name, (shape, _) in WEIGHTS.items()
    ]
    x, stem, deep, up, flat, rows, columns, y = ACTIVATIONS
    nodes = [
        helper.make_node("Conv", [x, "stem.weight"], [stem], "stem"),
        helper.make_node("Conv", [stem, "deep.weight"], [deep], "deep", group=4),
        helper.make_node("ConvTranspose", [deep, "up.weight"], [up], "up", strides=[2, 2]),
        helper.make_node("GlobalAveragePool", [up], ["mean"], "mean"),
        helper.make_node("Flatten", ["mean"], [flat], "flatten"),
        helper.make_node("Gemm", [flat, "rows.weight"], [rows], "gemm_t", transB=1),
        helper.make_node("Gemm", [rows, "columns.weight"], [columns], "gemm"),
        helper.make_node("MatMul", [columns, "product.weight"], [y], "matmul"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, 3, 12, 12])],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, 8])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    return onnx.shape_inference.infer_shapes(model)


def graph() -> GraphView:
    return view_of(network())
