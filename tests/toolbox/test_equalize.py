"""Equalised networks compute the same numbers, and what cannot be equalised is refused with its reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from avq.builder.graph.model import load_graph, normalise
from avq.builder.lower.model import Model
from avq.engines import engine_by_name
from avq.scenes import builtin_detector_path
from avq.toolbox import equalize, find_pairs
from avq.types import SessionOptions
from tests.toolbox.graphs import conv, residual_block, view

pytest.importorskip("onnxruntime")


def chain(*between: list[onnx.NodeProto]) -> onnx.ModelProto:
    """Convolutions with wild channel ranges, every second one depthwise; ``between`` stands between two."""
    rng = np.random.default_rng(3)
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, np.ndarray] = {}
    tensor = "x"
    for i, joint in enumerate([*between, []]):
        depthwise, inputs = i % 2 == 1, 3 if i == 0 else 8
        shape = (8, 1 if depthwise else inputs, 3, 3)
        gain = np.exp(rng.normal(0, 2, 8))[:, None, None, None]
        constants |= {f"w{i}": rng.normal(size=shape) * gain, f"b{i}": rng.normal(size=8) * gain.ravel()}
        group, out = 8 if depthwise else 1, f"c{i}"
        attributes: dict[str, Any] = {"pads": [1] * 4, "group": group}
        nodes.append(
            helper.make_node("Conv", [tensor, f"w{i}", f"b{i}"], [out], name=f"conv{i}", **attributes)
        )
        nodes += joint
        tensor = joint[-1].output[0] if joint else out
    constants |= {"slope": np.full((8, 1, 1), 0.2), "zero": np.float32(0), "six": np.float32(6)}
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "chain",
        [value("x", TensorProto.FLOAT, [1, 3, 16, 16])],
        [value(tensor, TensorProto.FLOAT, [1, 8, 16, 16])],
        [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def joined(op: str, i: int, *more: str, **attributes: Any) -> list[onnx.NodeProto]:
    return [helper.make_node(op, [f"c{i}", *more], [f"a{i}"], name=f"{op}{i}", **attributes)]


def outputs(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = engine_by_name("onnxruntime").open(proto.SerializeToString(), SessionOptions(optimise=False))
    try:
        return [np.array(value) for value in session.run(feeds).values()]
    finally:
        session.close()


def with_overrides(proto: onnx.ModelProto, overrides: Any) -> onnx.ModelProto:
    changed = Model(proto)
    for name, value in overrides.items():
        changed.replace_constant(name, value)
    return changed.proto


@pytest.mark.parametrize("with_peaks", [False, True])
def test_the_network_computes_the_same_through_homogeneous_functions(with_peaks: bool) -> None:
    joints = [
        joined("Relu", 0),
        joined("LeakyRelu", 1, alpha=0.1),
        joined("PRelu", 2, "slope"),
        joined("Clip", 3, "zero"),
        joined("AveragePool", 4, kernel_shape=[3, 3], pads=[1] * 4),
        joined("Identity", 5),
    ]
    model = normalise(chain(*joints))
    reads = [node.inputs[0] for node in model.view.nodes if node.op == "Conv"]
    peaks = {name: np.exp(np.arange(8.0)) for name in reads[1:]} if with_peaks else None
    found = equalize(model.view, peaks)
    assert len(found.factors) == len(joints)
    feeds = {"x": np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)}
    before = outputs(model.proto, feeds)[0]
    after = outputs(with_overrides(model.proto, found.overrides), feeds)[0]
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4 * np.abs(before).max())


def test_ranges_of_weights_meet() -> None:
    model = normalise(chain(joined("Relu", 0)))
    found = equalize(model.view)
    written = np.abs(found.overrides["w0"]).reshape(8, -1).max(axis=1)
    read = np.abs(found.overrides["w1"]).reshape(8, -1).max(axis=1)
    np.testing.assert_allclose(written, read, rtol=1e-3)


def test_channels_before_a_depthwise_convolution_become_equal_by_their_peaks() -> None:
    model = normalise(chain(joined("Relu", 0)))
    peaks = np.exp(np.arange(8.0))
    ((_, factor),) = equalize(model.view, {"a0": peaks}).factors.items()
    np.testing.assert_allclose(peaks / factor, np.full(8, np.exp(3.5)), rtol=1e-6)


def test_the_built_in_detector_answers_the_same() -> None:
    model = load_graph(builtin_detector_path())
    found = equalize(model.view)
    assert found.factors
    name, shape = model.view.inputs[0].name, model.view.inputs[0].shape
    feeds = {name: np.random.default_rng(1).random(shape).astype(model.view.inputs[0].dtype)}
    before = outputs(model.proto, feeds)
    after = outputs(with_overrides(model.proto, found.overrides), feeds)
    for a, b in zip(after, before, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("joint", "reason"),
    [
        (
            [
                helper.make_node("Sigmoid", ["c0"], ["s"], name="s"),
                helper.make_node("Mul", ["c0", "s"], ["a0"], name="m"),
            ],
            "SiLU",
        ),
        (joined("Clip", 0, "zero", "six"), "ReLU6"),
        (joined("HardSwish", 0), "hard-swish"),
        (joined("Tanh", 0), "curves"),
        (joined("Softmax", 0, axis=1), "not known"),
        ([helper.make_node("Add", ["c0", "c0"], ["a0"], name="twice")], "2 readers"),
    ],
)
def test_other_functions_are_refused_with_their_reason(joint: Any, reason: str) -> None:
    pairs, refused = find_pairs(normalise(chain(joint)).view)
    assert not pairs and reason in refused["conv0"]


def test_shared_weights_and_outputs_are_refused() -> None:
    weights = {"w": np.ones((8, 8, 1, 1), np.float32), "v": np.ones((8, 8, 1, 1), np.float32)}
    shared = view([conv("a", "x", "t", "w"), conv("b", "t", "y", "w")], weights, ["y"])
    assert "shared" in find_pairs(shared)[1]["a"]
    shown = view([conv("a", "x", "t", "w"), conv("b", "t", "y", "v")], weights, ["t", "y"])
    assert "output" in find_pairs(shown)[1]["a"]
    assert [(p.first, p.second) for p in find_pairs(residual_block())[0]] == [("a", "b")]
