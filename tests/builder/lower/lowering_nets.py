"""A small convolutional network with every shape of wiring a detector has, and exact plans for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from avq.builder.graph.view import view_of
from avq.engines import engine_by_name
from avq.types import Edge, GraphView, QuantizationPlan, QuantPoint, SessionOptions

SIZE = 32
OUTPUTS = ("boxes", "scores")


def small_net(seed: int = 0) -> onnx.ModelProto:
    """uint8 picture -> stem, depthwise, SiLU, residual Add, Concat, pool, transposed conv, Gemm head."""
    rng = np.random.default_rng(seed)
    constants: list[onnx.TensorProto] = []

    def const(name: str, shape: Sequence[int], spread: float = 0.3) -> str:
        values = rng.normal(0.0, spread, shape).astype(np.float32)
        constants.append(numpy_helper.from_array(values, name))
        return name

    def conv(name: str, data: str, out: str, shape: Sequence[int], **attributes: Any) -> onnx.NodeProto:
        inputs = [data, const(f"{name}.w", shape), const(f"{name}.b", [shape[0]], 0.1)]
        return helper.make_node("Conv", inputs, [out], name=name, **attributes)

    constants.append(numpy_helper.from_array(np.float32(1 / 64).reshape(()), "norm"))
    nodes = [
        helper.make_node("Cast", ["picture"], ["pixels"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "norm"], ["x0"], name="scale"),
        conv("stem", "x0", "x1", (8, 3, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["x1"], ["x2"], name="relu"),
        conv("depth", "x2", "x3", (8, 1, 3, 3), pads=[1, 1, 1, 1], group=8),
        helper.make_node("Sigmoid", ["x3"], ["x4"], name="sig"),
        helper.make_node("Mul", ["x3", "x4"], ["x5"], name="silu"),
        conv("point", "x5", "x6", (8, 8, 1, 1)),
        helper.make_node("Add", ["x6", "x2"], ["x7"], name="add"),
        helper.make_node("Concat", ["x7", "x2"], ["x8"], name="cat", axis=1),
        helper.make_node("MaxPool", ["x8"], ["x9"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node(
            "ConvTranspose", ["x9", const("up.w", (16, 6, 2, 2))], ["x10"], name="up", strides=[2, 2]
        ),
        conv("boxes_conv", "x10", "boxes", (4, 6, 1, 1)),
        helper.make_node("GlobalAveragePool", ["x10"], ["x11"], name="gap"),
        helper.make_node("Flatten", ["x11"], ["x12"], name="flat"),
        helper.make_node(
            "Gemm", ["x12", const("fc.w", (5, 6)), const("fc.b", [5])], ["scores"], name="fc", transB=1
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("picture", TensorProto.UINT8, [1, 3, SIZE, SIZE])],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, 4, SIZE // 2, SIZE // 2]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 5]),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (1, 3, SIZE, SIZE), dtype=np.uint8)


def answers(model: onnx.ModelProto | bytes, pictures: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Reference semantics: onnxruntime with every rewrite off."""
    content = model if isinstance(model, bytes) else model.SerializeToString()
    session = engine_by_name("onnxruntime").open(content, SessionOptions(optimise=False))
    return [{k: np.array(v) for k, v in session.infer(p).items()} for p in pictures]


def peaks(
    model: onnx.ModelProto, tensors: Sequence[str], pictures: Sequence[np.ndarray] = ()
) -> dict[str, tuple[float, float]]:
    """Exact (min, max) of activation tensors over a few pictures."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {value.name for value in watched.graph.output}
    watched.graph.output.extend(
        helper.make_tensor_value_info(t, TensorProto.FLOAT, None) for t in tensors if t not in known
    )
    seen = answers(watched, pictures or [picture(seed) for seed in range(100, 104)])
    return {t: (min(float(s[t].min()) for s in seen), max(float(s[t].max()) for s in seen)) for t in tensors}


WEIGHTED = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0}


def simple_plan(
    model: onnx.ModelProto,
    view: GraphView | None = None,
    *,
    symmetric: bool = True,
    pictures: Sequence[np.ndarray] = (),
) -> QuantizationPlan:
    """Every Conv, ConvTranspose and Gemm: min-max data per tensor, weights per output channel."""
    view = view_of(model) if view is None else view
    nodes = [n for n in view.nodes if n.op in WEIGHTED]
    ranges = peaks(model, sorted({n.inputs[0] for n in nodes}), pictures)
    points: dict[Edge, QuantPoint] = {}
    for node in nodes:
        data, weight = Edge(node.inputs[0]), Edge(node.inputs[1])
        points[data] = data_point(data, *ranges[data.tensor], symmetric=symmetric)
        points[weight] = weight_point(weight, view.constants[weight.tensor], WEIGHTED[node.op])
    return QuantizationPlan(view.digest, tuple(points.values()), owner="test", owner_version="1")


def data_point(edge: Edge, low: float, high: float, *, symmetric: bool = True, bits: int = 8) -> QuantPoint:
    levels = (1 << bits) - 1
    if symmetric:
        scale = max(-low, high) / (levels // 2)
        return QuantPoint(edge, np.float32(scale).reshape(()), np.zeros((), np.int64), bits=bits)
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / levels
    zero = np.asarray(round(-low / scale), np.int64)
    return QuantPoint(edge, np.float32(scale).reshape(()), zero, bits=bits, signed=False)


def weight_point(edge: Edge, weight: np.ndarray, axis: int) -> QuantPoint:
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.maximum(np.abs(weight).max(axis=others) / 127, 1e-9).astype(np.float32)
    return QuantPoint(edge, scale, np.zeros(scale.shape, np.int64), axis=axis)


def with_points(plan: QuantizationPlan, *points: QuantPoint) -> QuantizationPlan:
    merged = {**plan.by_edge, **{p.edge: p for p in points}}
    return replace(plan, points=tuple(merged.values()))


def ops(model: onnx.ModelProto, op: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == op]
