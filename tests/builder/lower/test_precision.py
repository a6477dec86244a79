"""FP16 islands, the saturation probe and the count of multiply-adds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from avq.builder.graph.view import view_of
from avq.builder.lower import (
    int8_mac_share,
    lower,
    macs_by_node,
    saturation_probe,
)
from avq.errors import PlanError
from avq.measure.drift import OCCUPANCY_PREFIX, SATURATION_PREFIX
from avq.types import Edge, NodePrecision, QuantizationPlan
from tests.builder.lower.lowering_nets import (
    OUTPUTS,
    answers,
    data_point,
    ops,
    peaks,
    picture,
    simple_plan,
    small_net,
)

HALF = NodePrecision("fp16", "test")


def _halves(*names: str) -> QuantizationPlan:
    return QuantizationPlan("", precisions=dict.fromkeys(names, HALF))


def test_an_fp16_island_computes_in_fp16_and_keeps_all_names() -> None:
    net = small_net()
    lowered = lower(net, _halves("depth", "sig", "silu", "point"), "s8")
    model = onnx.ModelProto.FromString(lowered)
    weights = {t.name: t.data_type for t in model.graph.initializer}
    by_name = {node.name: node for node in model.graph.node}
    assert weights[by_name["depth"].input[1]] == onnx.TensorProto.FLOAT16
    assert weights[by_name["stem"].input[1]] == onnx.TensorProto.FLOAT
    assert len(ops(model, "Cast")) == 3  # the picture's own, one into the island, one out of it
    got, floats = answers(lowered, [picture(0)])[0], answers(net, [picture(0)])[0]
    assert set(got) == set(OUTPUTS)
    error = np.abs(got["boxes"] - floats["boxes"]).max() / np.abs(floats["boxes"]).max()
    assert 0 < error < 5e-3


def test_int8_and_fp16_live_in_one_file() -> None:
    net = small_net()
    plan = replace(simple_plan(net), precisions={"add": HALF, "cat": HALF})
    assert set(answers(lower(net, plan, "u8"), [picture(0)])[0]) == set(OUTPUTS)


def test_constants_outside_fp16_are_refused() -> None:
    net = small_net()
    plan = replace(_halves("point"), overrides={"point.b": np.full(8, 7e4, np.float32)})
    with pytest.raises(PlanError, match=r"point\.b"):
        lower(net, plan, "s8")


def test_operators_without_an_fp16_form_are_refused() -> None:
    net = small_net()
    net.graph.node.append(onnx.helper.make_node("Shape", ["x2"], ["shape"], name="shape_of"))
    with pytest.raises(PlanError, match="has no FP16 form"):
        lower(net, _halves("shape_of"), "s8")


def test_the_probe_tells_the_share_outside_the_range() -> None:
    net = small_net()
    low, high = peaks(net, ["x2"])["x2"]
    wide, tight = data_point(Edge("x2"), low, high * 4), data_point(Edge("x2", "cat", 1), low, high / 4)
    probe = saturation_probe(net, QuantizationPlan("", (wide, tight)))
    onnx.checker.check_model(probe)
    got = answers(probe, [picture(0)])[0]
    both = (SATURATION_PREFIX, OCCUPANCY_PREFIX)
    assert set(got) == {f"{prefix}{p.edge}" for p in (wide, tight) for prefix in both}
    floats = onnx.ModelProto()
    floats.CopyFrom(net)
    floats.graph.output.append(onnx.helper.make_tensor_value_info("x2", onnx.TensorProto.FLOAT, None))
    x2 = answers(floats, [picture(0)])[0]["x2"]
    wanted = float((x2 > 127.5 * tight.scale).mean())
    assert got[f"{SATURATION_PREFIX}x2"] == 0
    assert got[f"{SATURATION_PREFIX}x2@cat:1"] == pytest.approx(wanted, abs=1e-6)
    assert wanted > 0
    inner = float((x2 > 127 * wide.scale / 8).mean())
    assert got[f"{OCCUPANCY_PREFIX}x2"] == pytest.approx(inner, abs=1e-6) and 0 < inner < 1
    assert not ops(probe, "Gemm")  # the probe stops at the last tensor it watches


def test_multiply_adds_are_counted_by_hand() -> None:
    view = view_of(small_net())
    assert macs_by_node(view) == {
        "stem": 16 * 16 * 8 * 3 * 9,
        "depth": 16 * 16 * 8 * 9,
        "point": 16 * 16 * 8 * 8,
        "up": 8 * 8 * 16 * 6 * 4,
        "boxes_conv": 16 * 16 * 4 * 6,
        "fc": 5 * 6,
    }


def test_the_int8_share_counts_nodes_with_both_inputs_quantized() -> None:
    net = small_net()
    view, plan = view_of(net), simple_plan(net)
    assert int8_mac_share(view, plan) == 1.0
    assert int8_mac_share(view, QuantizationPlan("")) == 0.0
    macs = macs_by_node(view)
    without = replace(plan, points=tuple(p for p in plan.points if p.edge.tensor not in ("stem.w", "x3")))
    assert int8_mac_share(view, without) == pytest.approx(1 - macs["stem"] / sum(macs.values()))
    weights_only = replace(
        plan,
        points=tuple(replace(p, mode="weight-only") for p in plan.points if p.edge.tensor in view.constants),
    )
    assert int8_mac_share(view, weights_only) == 0.0
