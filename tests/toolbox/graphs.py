"""Small GraphViews for placement tests, without any framework."""

from __future__ import annotations

import numpy as np

from avq.types import GraphView, NodeView, TensorView


def view(nodes: list[NodeView], constants: dict[str, np.ndarray], outputs: list[str]) -> GraphView:
    """A GraphView over ``nodes`` with one picture input 'x'."""
    return GraphView(
        nodes=tuple(nodes),
        inputs=(TensorView("x", "float32", (1, 8, 16, 16)),),
        outputs=tuple(TensorView(name, "float32", ()) for name in outputs),
        tensors={},
        constants=constants,
        opset=17,
        digest="d",
    )


def conv(name: str, source: str, target: str, weight: str, group: int = 1) -> NodeView:
    return NodeView(name, "Conv", (source, weight), (target,), {"group": group})


def residual_block() -> GraphView:
    """x -> conv a -> Relu -> conv b -> Add(x, .) -> Relu -> conv c (depthwise)."""
    rng = np.random.default_rng(0)
    return view(
        [
            conv("a", "x", "ta", "wa"),
            NodeView("ra", "Relu", ("ta",), ("tra",), {}),
            conv("b", "tra", "tb", "wb"),
            NodeView("add", "Add", ("tb", "x"), ("ts",), {}),
            NodeView("rs", "Relu", ("ts",), ("trs",), {}),
            conv("c", "trs", "tc", "wc", group=8),
        ],
        {
            "wa": rng.normal(size=(8, 8, 3, 3)).astype(np.float32),
            "wb": rng.normal(size=(8, 8, 3, 3)).astype(np.float32),
            "wc": rng.normal(size=(8, 1, 3, 3)).astype(np.float32),
        },
        ["tc"],
    )
