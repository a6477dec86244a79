"""FP16 around INT8: what the range rules leave in FP32, what the file then holds, and what it is worth on a GPU."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from avq.builder.cross_compile.cost_model import target_cost
from avq.builder.cross_compile.fp16 import activation_peaks, to_fp16
from avq.builder.graph.view import view_of
from avq.builder.lower import lower
from avq.bundle.plan import plan_from_parts, plan_to_parts
from avq.engines import engine_by_name
from avq.errors import PlanError
from avq.types import Edge, GraphView, NodePrecision, QuantizationPlan
from tests.builder.lower.lowering_nets import OUTPUTS, answers, picture, simple_plan, small_net, weight_point
from tests.opset_23 import require_opset_23

REFERENCE, RTX = engine_by_name("onnxruntime"), engine_by_name("tensorrt-rtx")


@pytest.fixture(scope="module")
def net() -> onnx.ModelProto:
    return small_net()


@pytest.fixture(scope="module")
def view(net: onnx.ModelProto) -> GraphView:
    return view_of(net)


@pytest.fixture(scope="module")
def halved(net: onnx.ModelProto, view: GraphView) -> QuantizationPlan:
    peaks = activation_peaks(net, view, [picture(0), picture(1)], REFERENCE)
    return to_fp16(view, simple_plan(net, view), peaks)


def nothing(view: GraphView) -> QuantizationPlan:
    return QuantizationPlan(graph_digest=view.digest)


def test_int8_with_an_fp16_side_means_nearly_the_same(
    net: onnx.ModelProto, view: GraphView, halved: QuantizationPlan
) -> None:
    require_opset_23()
    before = answers(lower(net, simple_plan(net, view), "s8"), [picture(3)])[0]
    after = answers(lower(net, halved, "s8"), [picture(3)])[0]
    for name in OUTPUTS:
        assert after[name].dtype == before[name].dtype
        assert np.abs(after[name] - before[name]).max() <= 0.05 * np.abs(before[name]).max()


def test_pairs_keep_their_fp32_scales_and_hand_on_fp16(
    net: onnx.ModelProto, halved: QuantizationPlan
) -> None:
    model = onnx.load_model_from_string(lower(net, halved, "s8"))
    scales = {n.input[1] for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")}
    kinds = {t.data_type for t in model.graph.initializer if t.name in scales}
    assert kinds == {TensorProto.FLOAT}
    dequantizers = [n for n in model.graph.node if n.op_type == "DequantizeLinear"]
    sided = [n for n in dequantizers if any(a.name == "output_dtype" for a in n.attribute)]
    assert len(sided) >= len(dequantizers) / 2
    # No INT8 convolution reads a cast: the runtime would not see its quantizers.
    casts = {n.output[0] for n in model.graph.node if n.op_type == "Cast"}
    integer = {node for node, chosen in halved.precisions.items() if chosen.precision == "int8"}
    assert not [n.name for n in model.graph.node if n.name in integer and casts & set(n.input[:2])]


def test_the_plan_survives_its_files(halved: QuantizationPlan) -> None:
    assert any(chosen.float_side == "fp16" for chosen in halved.precisions.values())
    assert plan_from_parts(*plan_to_parts(halved)).digest == halved.digest


def test_pictures_are_looked_at_for_their_largest_values(net: onnx.ModelProto, view: GraphView) -> None:
    peaks = activation_peaks(net, view, [picture(0)], REFERENCE)
    assert set(peaks) >= {name for node in view.nodes for name in node.outputs if name in OUTPUTS}
    raw = answers(net, [picture(0)])[0]
    for name in OUTPUTS:
        assert peaks[name] == pytest.approx(float(np.abs(raw[name]).max()), rel=1e-3)


def test_what_goes_beyond_fp16s_safe_range_stays_fp32_and_says_why(view: GraphView) -> None:
    names = {name for node in view.nodes for name in node.outputs}
    plan = to_fp16(view, nothing(view), dict.fromkeys(names, 1.0))
    chosen = next(node for node, p in plan.precisions.items() if p.precision == "fp16")
    loud = view.node(chosen).outputs[0]
    again = to_fp16(view, nothing(view), {**dict.fromkeys(names, 1.0), loud: 600.0})
    assert again.precisions[chosen].precision == "fp32"
    assert "600" in again.precisions[chosen].reason and "512" in again.precisions[chosen].reason


def scaled(factor: float) -> onnx.ModelProto:
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "k"], ["y"], name="scale"),
            helper.make_node("TopK", ["y", "n"], ["v", "i"], name="top"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("v", TensorProto.FLOAT, [1, 2])],
        [
            numpy_helper.from_array(np.float32(factor), "k"),
            numpy_helper.from_array(np.array([2], np.int64), "n"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize(("factor", "precision"), [(2.0, "fp16"), (1e5, "fp32")])
def test_constants_that_fp16_cannot_hold_stay_fp32(factor: float, precision: str) -> None:
    view = view_of(scaled(factor))
    plan = to_fp16(view, nothing(view), {"y": 1.0, "v": 1.0, "x": 1.0})
    assert plan.precisions["scale"].precision == precision


def test_a_float_model_in_half_is_fp16_all_through(net: onnx.ModelProto, view: GraphView) -> None:
    peaks = activation_peaks(net, view, [picture(0)], REFERENCE)
    model = onnx.load_model_from_string(lower(net, to_fp16(view, nothing(view), peaks), "s8"))
    weights = Counter(t.data_type for t in model.graph.initializer if len(t.dims) == 4)
    assert set(weights) == {TensorProto.FLOAT16}


def test_the_cost_model_prefers_int8_and_charges_for_boundaries(
    net: onnx.ModelProto, view: GraphView, halved: QuantizationPlan
) -> None:
    peaks = activation_peaks(net, view, [picture(0)], REFERENCE)
    half = target_cost(view, to_fp16(view, nothing(view), peaks))
    assert target_cost(view, halved) < half < target_cost(view, nothing(view))
    # One reader of a shared tensor left float: the tensor is written in float, and quantized by a kernel of its own.
    shared = [
        p.edge.tensor
        for p in halved.points
        if not view.is_constant(p.edge.tensor) and len(view.consumers(p.edge.tensor)) > 1
    ]
    assert shared
    without = tuple(p for p in halved.points if p.edge.tensor != shared[0])
    assert target_cost(view, replace(halved, points=without)) > target_cost(view, halved)


# INT4 weights, whose scales are FP16 where their readers are


def four_bits(net: onnx.ModelProto, view: GraphView, scale: np.ndarray | None = None) -> QuantizationPlan:
    """The Gemm's weights alone in 4 bits, one scale per output channel."""
    point = weight_point(Edge("fc.w"), view.constants["fc.w"], 0)
    fitting = point.scale * np.float32(127 / 7) if scale is None else scale
    low = replace(point, scale=fitting, bits=4, mode="weight-only")
    return QuantizationPlan(view.digest, (low,))


def int4_reader(model: onnx.ModelProto) -> tuple[int, list[int]]:
    """Return the element type of the scale, and the output types of DequantizeLinear."""
    (node,) = (n for n in model.graph.node if n.op_type == "DequantizeLinear")
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    assert kinds[node.input[0]] == TensorProto.INT4
    return kinds[node.input[1]], [a.i for a in node.attribute if a.name == "output_dtype"]


def test_int4_weights_of_an_fp16_node_have_fp16_scales(net: onnx.ModelProto, view: GraphView) -> None:
    quiet = dict.fromkeys((name for node in view.nodes for name in node.outputs), 1.0)
    plan = to_fp16(view, four_bits(net, view), quiet)
    assert plan.precisions["fc"].precision == "fp16"
    lowered = lower(net, plan, "s8")
    assert int4_reader(onnx.load_model_from_string(lowered)) == (TensorProto.FLOAT16, [])
    single, halved = (
        answers(lower(net, p, "s8"), [picture(3)])[0]["scores"] for p in (four_bits(net, view), plan)
    )
    assert np.abs(halved - single).max() <= 5e-3 * np.abs(single).max()


def test_int4_weights_whose_scales_do_not_fit_fp16_keep_their_node_in_fp32_and_say_why(
    net: onnx.ModelProto, view: GraphView
) -> None:
    quiet = dict.fromkeys((name for node in view.nodes for name in node.outputs), 1.0)
    tiny = np.array([0.02, 0.02, 1e-6, 0.02, 0.02], np.float32)
    plan = to_fp16(view, four_bits(net, view, tiny), quiet)
    chosen = plan.precisions["fc"]
    assert chosen.precision == "fp32" and "INT4" in chosen.reason and "1e-06" in chosen.reason
    assert int4_reader(onnx.load_model_from_string(lower(net, plan, "s8"))) == (TensorProto.FLOAT, [])
    forced = replace(plan, precisions={"fc": NodePrecision("fp16", "test")})
    with pytest.raises(PlanError, match="do not fit FP16"):
        lower(net, forced, "s8")


def test_a_dead_channels_scale_keeps_nothing_from_fp16(net: onnx.ModelProto, view: GraphView) -> None:
    quiet = dict.fromkeys((name for node in view.nodes for name in node.outputs), 1.0)
    weights = view.constants["fc.w"].copy()
    weights[2] = 0.0
    tiny = np.array([0.02, 0.02, 1e-9, 0.02, 0.02], np.float32)
    plan = to_fp16(view, replace(four_bits(net, view, tiny), overrides={"fc.w": weights}), quiet)
    assert plan.precisions["fc"].precision == "fp16"
    lowered = lower(net, plan, "s8")
    assert int4_reader(onnx.load_model_from_string(lowered)) == (TensorProto.FLOAT16, [])
    assert np.isfinite(answers(lowered, [picture(3)])[0]["scores"]).all()


@pytest.mark.skipif(not RTX.status().can_build, reason=f"tensorrt-rtx: {RTX.status().why}")
@pytest.mark.parametrize("smallest", [0.02, 1e-6], ids=["fp16", "fp32"])
def test_the_real_builder_takes_int4_weights_either_way(
    net: onnx.ModelProto, view: GraphView, smallest: float
) -> None:
    quiet = dict.fromkeys((name for node in view.nodes for name in node.outputs), 1.0)
    scale = np.array([0.02, 0.02, smallest, 0.02, 0.02], np.float32)
    model = lower(net, to_fp16(view, four_bits(net, view, scale), quiet), "s8")
    assert len(cast(Any, RTX).compile(model, "sm89").data) > 1000
