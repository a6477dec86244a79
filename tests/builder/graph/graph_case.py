"""Graphs written by hand, and the runtime that tells whether they still compute the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from avq.builder.graph.model import FloatModel


def info(name: str, shape: Any, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(
    nodes: Any, inputs: Any, outputs: Any, weights: Any = None, *, opset: int = 17, ir: int = 8
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def run(proto: onnx.ModelProto, *arrays: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return session.run(None, dict(zip(names, arrays, strict=True)))


def picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, np.float32)


def weights(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32)


def conv(x: str = "x", y: str = "y", w: str = "w", *more: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(
        "Conv", [x, w, *more], [y], **{"kernel_shape": [3, 3], "pads": [1] * 4} | attributes
    )


def small(**options: Any) -> onnx.ModelProto:
    node = conv(y="y")
    return model_of(
        [node], [info("x", [1, 3, 8, 8])], [info("y", None)], {"w": weights(4, 3, 3, 3)}, **options
    )


def ops(model: FloatModel) -> list[str]:
    return [node.op for node in model.view.nodes]
