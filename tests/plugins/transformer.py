"""A small detector of transformer blocks, written with onnx.helper: patches, attention, GELU, DETR-like queries.

Every patch of the picture is a query with one box near it. Weights are random but sane, so it finds boxes that depend
on the picture; nothing is learnt, and nothing needs to be: INT8 is compared with the same network in float.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

PATCH = 16


class _Net:
    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op, list(inputs), [name], name=f"n{len(self.nodes)}", **attributes)
        )
        return name

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weights(self, *shape: int, gain: float = 1.0) -> str:
        values = (
            self.rng.standard_t(5, size=shape) * gain / np.sqrt(shape[0])
        )  # heavier tails, as trained ones
        return self.constant(values.astype(np.float32))

    def linear(self, x: str, ins: int, outs: int, gain: float = 1.0) -> str:
        product = self.add("MatMul", x, self.weights(ins, outs, gain=gain))
        return self.add("Add", product, self.constant((0.1 * self.rng.normal(size=outs)).astype(np.float32)))

    def norm(self, x: str, width: int) -> str:
        scale = self.constant((1 + 0.2 * self.rng.normal(size=width)).astype(np.float32))
        shift = self.constant(np.zeros(width, np.float32))
        return self.add("LayerNormalization", x, scale, shift, axis=-1)

    def gelu(self, x: str) -> str:
        inner = self.add("Erf", self.add("Mul", x, self.constant(np.float32(np.sqrt(0.5)))))
        half = self.add("Mul", x, self.constant(np.float32(0.5)))
        return self.add("Mul", half, self.add("Add", inner, self.constant(np.float32(1.0))))

    def attention(self, x: str, tokens: int, width: int, heads: int) -> str:
        split = self.constant(np.array([1, tokens, heads, width // heads], np.int64))

        def head(order: list[int]) -> str:
            projected = self.add("Reshape", self.linear(x, width, width), split)
            return self.add("Transpose", projected, perm=order)

        scores = self.add("MatMul", head([0, 2, 1, 3]), head([0, 2, 3, 1]))
        scaled = self.add("Mul", scores, self.constant(np.float32((width // heads) ** -0.5)))
        mixed = self.add("MatMul", self.add("Softmax", scaled, axis=-1), head([0, 2, 1, 3]))
        merged = self.add("Transpose", mixed, perm=[0, 2, 1, 3])
        joined = self.add("Reshape", merged, self.constant(np.array([1, tokens, width], np.int64)))
        return self.linear(joined, width, width, gain=0.5)

    def feed_forward(self, x: str, tokens: int, width: int) -> str:
        """As Gemm on a flattened batch, which is how some exporters write it."""
        flat = self.add("Reshape", x, self.constant(np.array([tokens, width], np.int64)))
        for ins, outs in ((width, 4 * width), (4 * width, width)):
            bias = self.constant((0.1 * self.rng.normal(size=outs)).astype(np.float32))
            flat = self.add("Gemm", flat, self.weights(outs, ins), bias, transB=1)
            flat = self.gelu(flat) if outs > ins else flat
        return self.add("Reshape", flat, self.constant(np.array([1, tokens, width], np.int64)))


def transformer_detector(
    *,
    width_px: int = 320,
    height_px: int = 192,
    dim: int = 96,
    blocks: int = 2,
    heads: int = 4,
    seed: int = 0,
) -> onnx.ModelProto:
    """(1, 3, h, w) float in 0..1 to boxes (1, N, 4) cxcywh in 0..1 and scores (1, N, 3), N patches."""
    net = _Net(seed)
    columns, rows = width_px // PATCH, height_px // PATCH
    tokens = columns * rows
    centred = net.add("Sub", "images", net.constant(np.float32(0.45)))
    kernel = net.rng.normal(size=(dim, 3, PATCH, PATCH)) / (3 * PATCH)
    patches = net.add("Conv", centred, net.constant(kernel.astype(np.float32)), strides=[PATCH, PATCH])
    listed = net.add("Reshape", patches, net.constant(np.array([1, dim, tokens], np.int64)))
    x = net.add("Transpose", listed, perm=[0, 2, 1])
    x = net.add("Add", x, net.constant((0.5 * net.rng.normal(size=(1, tokens, dim))).astype(np.float32)))
    for _ in range(blocks):
        x = net.add("Add", x, net.attention(net.norm(x, dim), tokens, dim, heads))
        x = net.add("Add", x, net.feed_forward(net.norm(x, dim), tokens, dim))
    x = net.norm(x, dim)
    hidden = net.add("Relu", net.linear(x, dim, dim))
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(1, tokens, 2) + 0.5
    anchors = np.concatenate([grid / [columns, rows], np.full((1, tokens, 2), 0.15)], -1)
    prior = net.constant(np.log(anchors / (1 - anchors)).astype(np.float32))
    near = net.add("Add", net.linear(hidden, dim, 4, gain=0.1), prior)
    boxes = net.add("Sigmoid", near)
    scores = net.add("Sigmoid", net.linear(x, dim, 3, gain=2.0))
    named = [
        helper.make_node("Identity", [t], [n], name=n) for t, n in ((boxes, "boxes"), (scores, "scores"))
    ]
    graph = helper.make_graph(
        [*net.nodes, *named],
        "transformer",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, height_px, width_px])],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, tokens, 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, tokens, 3]),
        ],
        net.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return onnx.shape_inference.infer_shapes(model)


def write_transformer(path: Path, **sizes: int) -> Path:
    """The detector as a file; returns ``path``."""
    onnx.save(transformer_detector(**sizes), path)
    return path
