"""Products of run-time quantized activations: integers in the file, the numbers of the pairs, one fused kernel."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from avq.builder.graph.model import load_graph
from avq.builder.lower import lower, lower_qdq
from avq.toolbox import place, weight_point
from avq.types import Edge, QuantizationPlan, QuantPoint
from tests.conftest import PRODUCTS_SATURATE

ROWS, INS, OUTS = 12, 24, 16


def network(op: str, attributes: dict[str, Any], weight_shape: tuple[int, ...]) -> onnx.ModelProto:
    rng = np.random.default_rng(3)
    constants = {
        "w": rng.normal(size=weight_shape).astype(np.float32),
        "b": rng.normal(size=OUTS).astype(np.float32),
    }
    if op == "MatMul":
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["p"], name="product"),
            helper.make_node("Add", ["p", "b"], ["y"], name="bias"),
        ]
    else:
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="product", **attributes)]
    shape = [INS, ROWS] if attributes.get("transA") else [ROWS, INS]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [ROWS, OUTS])],
        [numpy_helper.from_array(v, n) for n, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def dynamic(proto: onnx.ModelProto, tmp_path: Path) -> tuple[onnx.ModelProto, QuantizationPlan]:
    onnx.save(proto, tmp_path / "m.onnx")
    loaded = load_graph(tmp_path / "m.onnx")
    (placement,) = place(loaded.view)
    points = [
        QuantPoint(e, np.asarray(1.0, np.float32), np.asarray(0, np.int64), signed=False, mode="dynamic")
        for e in placement.activations
    ]
    if placement.weight is not None:
        weight = loaded.view.constants[placement.weight.tensor]
        points.append(weight_point(placement.weight, weight, placement.weight_axis))
    return loaded.proto, QuantizationPlan(loaded.view.digest, tuple(points))


def answers(model: bytes, *feeds: np.ndarray, optimise: bool = False) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    named = {port.name: feed for port, feed in zip(session.get_inputs(), feeds, strict=True)}
    return session.run(None, named)[0]


def integer_answers(model: bytes, feed: np.ndarray) -> list[np.ndarray]:
    """Answers with exact integer sums: onnx's reference, and onnxruntime on processors that do not saturate."""
    reference: Any = ReferenceEvaluator(onnx.load_model_from_string(model))
    exact = reference.run(None, {reference.input_names[0]: feed})[0]
    return [exact] if PRODUCTS_SATURATE else [exact, answers(model, feed)]


def picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(9).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("op", "attributes", "weight_shape"),
    [
        ("MatMul", {}, (INS, OUTS)),
        ("Gemm", {}, (INS, OUTS)),
        ("Gemm", {"transB": 1}, (OUTS, INS)),
        ("Gemm", {"transB": 1, "alpha": 0.25}, (OUTS, INS)),
    ],
)
def test_the_integers_mean_what_the_pairs_mean(
    op: str, attributes: dict[str, Any], weight_shape: Any, tmp_path: Path
) -> None:
    proto, plan = dynamic(network(op, attributes, weight_shape), tmp_path)
    pairs = lower_qdq(proto, plan, "asymmetric").SerializeToString()
    integers = lower(proto, plan, "asymmetric")
    ops = Counter(node.op_type for node in onnx.load_model_from_string(integers).graph.node)
    assert ops["MatMulInteger"] == 1 and not ops["DequantizeLinear"] + ops["MatMul"] + ops["Gemm"]
    x = picture(ROWS, INS)
    for answer in integer_answers(integers, x):
        np.testing.assert_allclose(answer, answers(pairs, x), rtol=0, atol=2e-5)


def test_onnxruntime_runs_product_and_bias_as_one_integer_kernel(tmp_path: Path) -> None:
    proto, plan = dynamic(network("MatMul", {}, (INS, OUTS)), tmp_path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        lower(proto, plan, "asymmetric"), options, providers=["CPUExecutionProvider"]
    )
    assert [n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node] == ["DynamicQuantizeMatMul"]


@pytest.mark.parametrize("attributes", [{"beta": 0.5}, {"transA": 1}])
def test_forms_that_the_integer_operator_lacks_stay_pairs(attributes: dict[str, Any], tmp_path: Path) -> None:
    proto, plan = dynamic(network("Gemm", attributes, (INS, OUTS)), tmp_path)
    lowered = onnx.load_model_from_string(lower(proto, plan, "asymmetric"))
    assert "Gemm" in {n.op_type for n in lowered.graph.node}


def test_two_activations_are_both_quantized_at_run_time(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["q"], ["k"], name="turn", perm=[0, 2, 1]),
            helper.make_node("MatMul", ["q", "k"], ["y"], name="scores"),
        ],
        "g",
        [helper.make_tensor_value_info("q", TensorProto.FLOAT, [2, ROWS, INS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, ROWS, ROWS])],
    )
    float_model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    proto, plan = dynamic(float_model, tmp_path)
    assert {p.edge for p in plan.points} == {Edge("q", "scores", 0), Edge("k", "scores", 1)}
    integers = lower(proto, plan, "asymmetric")
    q = picture(2, ROWS, INS)
    exact, found = q @ q.transpose(0, 2, 1), answers(integers, q)
    assert np.abs(found - exact).max() < 0.05 * np.abs(exact).max()
    pairs = lower_qdq(proto, plan, "asymmetric").SerializeToString()
    np.testing.assert_allclose(found, answers(pairs, q), rtol=0, atol=2e-5)


def test_scales_follow_the_picture(tmp_path: Path) -> None:
    """A hundred times darker input keeps its relative precision: what no calibrated scale can do."""
    float_model = network("MatMul", {}, (INS, OUTS))
    proto, plan = dynamic(float_model, tmp_path)
    integers, bias = lower(proto, plan, "asymmetric"), numpy_helper.to_array(float_model.graph.initializer[1])
    for brightness in (1.0, 0.01):
        x = np.float32(brightness) * picture(ROWS, INS)
        exact = answers(float_model.SerializeToString(), x) - bias
        for answer in integer_answers(integers, x):
            noise = answer - bias - exact
            assert np.square(noise).mean() < 1e-3 * np.square(exact).mean()


def test_weights_of_two_readers_stay_for_the_one_that_needs_them_in_float(tmp_path: Path) -> None:
    """A weight read by a dynamic product and by a float one keeps its pair for the latter."""
    base = network("MatMul", {}, (INS, OUTS))
    base.graph.node.append(helper.make_node("Relu", ["x"], ["r"], name="relu"))
    base.graph.node.append(helper.make_node("MatMul", ["r", "w"], ["z"], name="other"))
    base.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [ROWS, OUTS]))
    onnx.save(base, tmp_path / "m.onnx")
    loaded = load_graph(tmp_path / "m.onnx")
    shared = weight_point(Edge("w"), loaded.view.constants["w"], 1)
    own = QuantPoint(
        Edge("x", "product", 0),
        np.float32(1.0).reshape(()),
        np.int64(0).reshape(()),
        signed=False,
        mode="dynamic",
    )
    lowered = lower(loaded.proto, QuantizationPlan(loaded.view.digest, (shared, own)), "asymmetric")
    ops = Counter(n.op_type for n in onnx.load_model_from_string(lowered).graph.node)
    assert ops["MatMulInteger"] == 1 and ops["MatMul"] == 1 and ops["DequantizeLinear"] == 1
