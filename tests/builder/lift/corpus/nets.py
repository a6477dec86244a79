"""Small float networks that dialect writers quantize: one per structure that imports get wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE_PX = 8


@dataclass
class Net:
    """A float graph in the making; ``edges`` are the activation inputs of weighted operators, to be quantized."""

    seed: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=lambda: ["out"])
    opset: int = 17

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def conv(
        self,
        x: str,
        out: str,
        channels: tuple[int, int],
        *,
        kernel: int = 3,
        group: int = 1,
        bias: bool = True,
    ) -> str:
        shape = (channels[1], channels[0] // group, kernel, kernel)
        self.weights[f"{out}.w"] = self._draw(shape)
        inputs = [x, f"{out}.w"]
        if bias:
            self.weights[f"{out}.b"] = self._draw((channels[1],)) * np.float32(0.1)
            inputs.append(f"{out}.b")
        pads = [kernel // 2] * 4
        self.nodes.append(helper.make_node("Conv", inputs, [out], name=out, pads=pads, group=group))
        return out

    def op(self, op: str, inputs: list[str], out: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [out], name=out, **attributes))
        return out

    def constant(self, name: str, value: np.ndarray) -> str:
        self.weights[name] = value
        return name

    def _draw(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.rng.normal(0, 0.4, shape).astype(np.float32)

    def model(self) -> onnx.ModelProto:
        picture = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIDE_PX, SIDE_PX])
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in self.outputs]
        tensors = [numpy_helper.from_array(value, name) for name, value in self.weights.items()]
        graph = helper.make_graph(self.nodes, "net", [picture], outputs, tensors)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        return onnx.shape_inference.infer_shapes(made)


def plain(seed: int = 0) -> Net:
    """Two convolutions and a ReLU between."""
    net = Net(seed)
    net.op("Relu", [net.conv("x", "c1", (3, 8))], "r1")
    net.conv("r1", "out", (8, 4))
    return net


def residual(seed: int = 1) -> Net:
    """A residual whose identity branch is a reader of its own."""
    net = Net(seed)
    net.op("Relu", [net.conv("x", "c1", (3, 8))], "r1")
    net.op("Relu", [net.conv("r1", "c2", (8, 8))], "r2")
    net.conv("r2", "c3", (8, 8))
    net.op("Add", ["c3", "r1"], "sum")
    net.conv("sum", "out", (8, 4), kernel=1)
    return net


def joined(seed: int = 2) -> Net:
    """Two branches into a Concat."""
    net = Net(seed)
    net.op("Relu", [net.conv("x", "c1", (3, 6))], "r1")
    net.op("Relu", [net.conv("x", "c2", (3, 6), kernel=1)], "r2")
    net.op("Concat", ["r1", "r2"], "both", axis=1)
    net.conv("both", "out", (12, 4), kernel=1)
    return net


def depthwise(seed: int = 3) -> Net:
    """A depthwise convolution whose channels differ a hundredfold, and a SiLU."""
    net = Net(seed)
    net.conv("x", "c1", (3, 8))
    net.op("Sigmoid", ["c1"], "s1")
    net.op("Mul", ["c1", "s1"], "a1")
    net.conv("a1", "d1", (8, 8), group=8)
    net.weights["d1.w"] *= np.logspace(-1, 1, 8).astype(np.float32).reshape(8, 1, 1, 1)
    net.op("Relu", ["d1"], "r1")
    net.conv("r1", "out", (8, 4), kernel=1)
    return net


def linear(seed: int = 4) -> Net:
    """Pooling, a Reshape and a Gemm with transposed weights, then a MatMul."""
    net = Net(seed)
    net.op("Relu", [net.conv("x", "c1", (3, 8))], "r1")
    net.op("GlobalAveragePool", ["r1"], "p1")
    net.op("Reshape", ["p1", net.constant("flat", np.array([1, 8], np.int64))], "f1")
    net.constant("g1.w", net._draw((16, 8)))
    net.constant("g1.b", net._draw((16,)))
    net.op("Gemm", ["f1", "g1.w", "g1.b"], "g1", transB=1)
    net.op("Relu", ["g1"], "r2")
    net.constant("m1.w", net._draw((16, 4)))
    net.op("MatMul", ["r2", "m1.w"], "out")
    return net


def upward(seed: int = 5) -> Net:
    """A transposed convolution, whose output channels lie on axis 1."""
    net = Net(seed)
    net.op("Relu", [net.conv("x", "c1", (3, 8))], "r1")
    net.constant("t1.w", net._draw((8, 6, 2, 2)))
    net.constant("t1.b", net._draw((6,)))
    net.op("ConvTranspose", ["r1", "t1.w", "t1.b"], "t1", strides=[2, 2])
    net.op("Relu", ["t1"], "r2")
    net.conv("r2", "out", (6, 4), kernel=1)
    return net


def normed(seed: int = 6) -> Net:
    """Batch normalisation that nobody fused."""
    net = Net(seed)
    net.conv("x", "c1", (3, 8), bias=False)
    for name, low, high in (("gain", 0.5, 2.0), ("shift", -1, 1), ("mean", -1, 1), ("var", 0.5, 2.0)):
        net.constant(f"bn.{name}", net.rng.uniform(low, high, 8).astype(np.float32))
    net.op("BatchNormalization", ["c1", "bn.gain", "bn.shift", "bn.mean", "bn.var"], "n1")
    net.op("Relu", ["n1"], "r1")
    net.conv("r1", "out", (8, 4))
    return net


def moved(seed: int = 7) -> Net:
    """Transposes and reshapes between the weighted operators, as attention has them."""
    net = Net(seed)
    net.op("Relu", [net.conv("x", "c1", (3, 8))], "r1")
    net.op("Reshape", ["r1", net.constant("rows", np.array([1, 8, SIDE_PX * SIDE_PX], np.int64))], "f1")
    net.op("Transpose", ["f1"], "f2", perm=[0, 2, 1])
    net.constant("q.w", net._draw((8, 8)))
    net.op("MatMul", ["f2", "q.w"], "q1")
    net.op("MatMul", ["q1", "f1"], "out")
    return net


def clipped(high: float | None = None, seed: int = 8, *, scores: bool = False) -> Net:
    """Relu, or Clip(0, high), behind a convolution, a residual sum and a product; a Sigmoid behind ``scores``."""
    net = Net(seed)

    def activation(x: str, out: str) -> str:
        if high is None:
            return net.op("Relu", [x], out)
        ends = [
            net.constant(f"{out}.{e}", np.float32(v).reshape(())) for e, v in (("low", 0), ("high", high))
        ]
        return net.op("Clip", [x, *ends], out)

    activation(net.conv("x", "c1", (3, 8)), "a1")
    net.weights["c1.w"] *= np.float32(4)
    net.conv("a1", "c2", (8, 8))
    activation(net.op("Add", ["c2", "a1"], "sum"), "a2")
    net.op("MaxPool", ["a2"], "p1", kernel_shape=[2, 2], strides=[2, 2])
    activation(net.conv("p1", "d1", (8, 8), group=8), "a3")
    net.op("GlobalAveragePool", ["a3"], "p2")
    net.op("Reshape", ["p2", net.constant("flat", np.array([1, 8], np.int64))], "f1")
    net.constant("m1.w", net._draw((8, 8)))
    activation(net.op("MatMul", ["f1", "m1.w"], "m1"), "a4")
    net.constant("g1.w", net._draw((8, 4)))
    net.op("Gemm", ["a4", "g1.w"], "g1" if scores else "out")
    if scores:
        net.op("Sigmoid", ["g1"], "out")
    return net


NETS: dict[str, Callable[[], Net]] = {
    net.__name__: net for net in (plain, residual, joined, depthwise, linear, upward, normed, moved)
}
