"""What a written plan computes, and that nothing else is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from avq.builder.frontend.fold_input import fold_input
from avq.builder.graph.model import load_graph
from avq.builder.graph.view import view_of
from avq.builder.lower import lower, lower_qdq
from avq.engines import builtin_engines
from avq.errors import PlanError, RequestError
from avq.preprocess import Preprocessor
from avq.types import Edge, PreprocessSpec, QuantizationPlan, QuantPoint, SessionOptions
from tests.builder.lower.lowering_nets import (
    OUTPUTS,
    answers,
    data_point,
    ops,
    peaks,
    picture,
    simple_plan,
    small_net,
    weight_point,
)


@pytest.fixture(scope="module")
def net() -> onnx.ModelProto:
    return small_net()


@pytest.fixture(scope="module")
def plan(net: onnx.ModelProto) -> QuantizationPlan:
    return simple_plan(net)


def test_signed_and_unsigned_files_give_the_same_bits_on_100_pictures(
    net: onnx.ModelProto, plan: QuantizationPlan
) -> None:
    pictures = [picture(seed) for seed in range(100)]
    signed, unsigned = (answers(lower(net, plan, encoding), pictures) for encoding in ("s8", "u8"))
    for one, other in zip(signed, unsigned, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in OUTPUTS)


def test_asymmetric_is_closer_to_float_than_symmetric(net: onnx.ModelProto, plan: QuantizationPlan) -> None:
    pictures = [picture(seed) for seed in range(5)]
    floats = answers(net, pictures)

    def noise(content: bytes) -> float:
        got = answers(content, pictures)
        return sum(float(((g["boxes"] - f["boxes"]) ** 2).mean()) for g, f in zip(got, floats, strict=True))

    symmetric = noise(lower(net, plan, "s8"))
    asymmetric = noise(lower(net, simple_plan(net, symmetric=False), "asymmetric"))
    assert 0 < asymmetric < symmetric


def test_symmetric_plan_as_asymmetric_is_the_unsigned_file(
    net: onnx.ModelProto, plan: QuantizationPlan
) -> None:
    assert lower(net, plan, "asymmetric") == lower(net, plan, "u8")


def test_the_same_plan_gives_the_same_file_and_leaves_the_model_alone(
    net: onnx.ModelProto, plan: QuantizationPlan
) -> None:
    before = net.SerializeToString(deterministic=True)
    assert lower(net, plan, "s8") == lower(net, plan, "s8")
    assert net.SerializeToString(deterministic=True) == before


def test_a_written_point_computes_what_the_plan_says(net: onnx.ModelProto) -> None:
    """One quantized activation, compared with the formula on the float tensor."""
    point = data_point(Edge("x2"), *peaks(net, ["x2"])["x2"])
    watched = onnx.ModelProto.FromString(lower(net, QuantizationPlan("", (point,)), "s8"))
    dequantized = ops(watched, "DequantizeLinear")[0].output[0]
    watched.graph.output.extend(
        onnx.helper.make_tensor_value_info(t, onnx.TensorProto.FLOAT, None) for t in ("x2", dequantized)
    )
    got = answers(watched, [picture(0)])[0]
    wanted = np.clip(np.rint(got["x2"] / point.scale), -128, 127) * point.scale
    assert np.array_equal(got[dequantized], wanted.astype(np.float32))


def test_nothing_is_written_that_the_plan_does_not_name(net: onnx.ModelProto, plan: QuantizationPlan) -> None:
    empty = lower_qdq(net, QuantizationPlan("any"), "s8")
    assert [n.SerializeToString() for n in empty.graph.node] == [
        n.SerializeToString() for n in net.graph.node
    ]
    one = lower_qdq(net, QuantizationPlan("any", plan.points[:1]), "s8")
    assert len(ops(one, "QuantizeLinear")) == 1
    assert len(ops(one, "DequantizeLinear")) == 1


def test_readers_with_the_same_grid_share_one_pair(net: onnx.ModelProto) -> None:
    low, high = peaks(net, ["x2"])["x2"]
    edges = [Edge("x2", "depth", 0), Edge("x2", "add", 1), Edge("x2", "cat", 1)]
    same = tuple(data_point(edge, low, high) for edge in edges)
    model = lower_qdq(net, QuantizationPlan("", same), "s8")
    assert len(ops(model, "QuantizeLinear")) == 1
    other = lower_qdq(net, QuantizationPlan("", (*same[:2], data_point(edges[2], low, high / 2))), "s8")
    assert len(ops(other, "QuantizeLinear")) == 2


def test_only_the_named_reader_sees_the_quantized_value(net: onnx.ModelProto) -> None:
    point = data_point(Edge("x2", "add", 1), *peaks(net, ["x2"])["x2"])
    model = lower_qdq(net, QuantizationPlan("", (point,)), "s8")
    inputs = {node.name: list(node.input) for node in model.graph.node}
    assert inputs["depth"][0] == "x2"
    assert inputs["cat"] == ["x7", "x2"]
    assert inputs["add"][0] == "x6"
    assert inputs["add"][1] == ops(model, "DequantizeLinear")[0].output[0]


def test_a_reader_of_its_own_overrules_the_tensor(net: onnx.ModelProto) -> None:
    low, high = peaks(net, ["x2"])["x2"]
    whole = data_point(Edge("x2"), low, high)
    own = data_point(Edge("x2", "cat", 1), low, high / 4)
    model = lower_qdq(net, QuantizationPlan("", (whole, own)), "s8")
    inputs = {node.name: list(node.input) for node in model.graph.node}
    assert inputs["depth"][0] == inputs["add"][1] != inputs["cat"][1]


def test_output_names_survive_a_quantized_output(net: onnx.ModelProto) -> None:
    point = data_point(Edge("boxes"), *peaks(net, ["boxes"])["boxes"])
    lowered = lower(net, QuantizationPlan("", (point,)), "s8")
    got, floats = answers(lowered, [picture(0)])[0], answers(net, [picture(0)])[0]
    assert set(got) == set(OUTPUTS)
    wanted = np.clip(np.rint(floats["boxes"] / point.scale), -128, 127) * point.scale
    assert np.array_equal(got["boxes"], wanted.astype(np.float32))


def test_new_names_do_not_meet_names_of_the_model(net: onnx.ModelProto, plan: QuantizationPlan) -> None:
    """A model that already uses the very names the writer would choose."""
    hostile = onnx.ModelProto()
    hostile.CopyFrom(net)
    taken = {
        name
        for model in (lower_qdq(net, plan, "s8"),)
        for group in (model.graph.initializer, model.graph.node)
        for name in (item.name for item in group)
    } - {item.name for item in (*net.graph.initializer, *net.graph.node)}
    for index, name in enumerate(sorted(taken)):
        hostile.graph.node.append(onnx.helper.make_node("Relu", ["x2"], [name], name=f"extra{index}"))
    lowered = lower(hostile, plan, "s8")
    assert np.array_equal(
        answers(lowered, [picture(0)])[0]["boxes"], answers(lower(net, plan, "s8"), [picture(0)])[0]["boxes"]
    )


def test_weights_become_signed_bytes_and_biases_stay_float(
    net: onnx.ModelProto, plan: QuantizationPlan
) -> None:
    model = onnx.ModelProto.FromString(lower(net, plan, "u8"))
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    for node in (n for n in model.graph.node if n.op_type in ("Conv", "ConvTranspose", "Gemm")):
        behind = {n.output[0]: n for n in ops(model, "DequantizeLinear")}[node.input[1]]
        assert kinds[behind.input[0]] == kinds[behind.input[2]] == onnx.TensorProto.INT8
        assert all(kinds[name] == onnx.TensorProto.FLOAT for name in node.input[2:])
    assert "stem.w" not in kinds


def test_overrides_replace_constants(net: onnx.ModelProto, plan: QuantizationPlan) -> None:
    corrected = numpy_helper.to_array(next(t for t in net.graph.initializer if t.name == "fc.b")) + 1
    changed = lower(net, replace(plan, overrides={"fc.b": corrected}), "s8")
    shift = (
        answers(changed, [picture(0)])[0]["scores"]
        - answers(lower(net, plan, "s8"), [picture(0)])[0]["scores"]
    )
    assert np.allclose(shift, 1.0, atol=1e-5)
    with pytest.raises(PlanError, match="does not fit"):
        lower(net, replace(plan, overrides={"fc.b": np.zeros(7, np.float32)}), "s8")


@pytest.mark.parametrize(("bits", "narrow"), [(4, False), (6, False), (8, True), (2, False)])
def test_small_grids_only_reach_their_levels(net: onnx.ModelProto, bits: int, narrow: bool) -> None:
    low, high = peaks(net, ["x3"])["x3"]
    point = replace(data_point(Edge("x3"), low / 3, high / 3, bits=bits), narrow=narrow)
    model = onnx.ModelProto.FromString(lower(net, QuantizationPlan("", (point,)), "s8"))
    quantized = ops(model, "QuantizeLinear")[0].output[0]
    model.graph.output.append(onnx.helper.make_tensor_value_info(quantized, onnx.TensorProto.INT8, None))
    levels = answers(model, [picture(0)])[0][quantized]
    assert levels.min() == point.qmin
    assert levels.max() == point.qmax
    unsigned = answers(lower(net, QuantizationPlan("", (point,)), "u8"), [picture(0)])[0]
    assert np.array_equal(unsigned["boxes"], answers(model, [picture(0)])[0]["boxes"])


def test_packed_four_bit_blocks_and_sixteen_bits_raise_the_opset(net: onnx.ModelProto) -> None:
    weight = view_of(net).constants["point.w"]
    blocks = np.abs(weight).reshape(8, 2, 4).max(axis=2).reshape(8, 2, 1, 1).astype(np.float32) / 7
    packed = QuantPoint(
        Edge("point.w"),
        blocks,
        np.zeros(blocks.shape, np.int64),
        axis=1,
        block_size=4,
        bits=4,
        mode="weight-only",
    )
    wide = data_point(Edge("x2"), *peaks(net, ["x2"])["x2"], bits=16)
    lowered = lower(net, QuantizationPlan("", (packed, wide)), "s8")
    model = onnx.ModelProto.FromString(lowered)
    assert model.opset_import[0].version == 21
    assert onnx.TensorProto.INT4 in {t.data_type for t in model.graph.initializer}
    got, floats = answers(lowered, [picture(1)])[0]["boxes"], answers(net, [picture(1)])[0]["boxes"]
    error = float(((got - floats) ** 2).mean() / (floats**2).mean())
    assert 0 < error < 0.05


def test_dynamic_scales_follow_the_picture(net: onnx.ModelProto, plan: QuantizationPlan) -> None:
    """No calibration: the grid of each picture is its own minimum and maximum."""
    constants = view_of(net).constants
    dynamic = tuple(
        p if p.edge.tensor in constants else replace(p, mode="dynamic", signed=False) for p in plan.points
    )
    lowered = lower(net, replace(plan, points=dynamic), "asymmetric")
    assert len(ops(onnx.ModelProto.FromString(lowered), "DynamicQuantizeLinear")) == 6
    pictures = [picture(0), picture(1) // 16]  # the second is far darker than any static range
    got, floats = answers(lowered, pictures), answers(net, pictures)
    static = answers(lower(net, plan, "s8"), pictures)

    def noise(answer: Any, index: Any) -> Any:
        return float(((answer[index]["boxes"] - floats[index]["boxes"]) ** 2).mean())

    assert 0 < noise(got, 1) < noise(static, 1) / 4
    for engine in builtin_engines():
        if engine.status().can_run:
            boxes = engine.open(lowered, SessionOptions()).infer(pictures[0])["boxes"]
            assert float(((boxes - got[0]["boxes"]) ** 2).mean()) <= noise(got, 0)


@pytest.mark.parametrize("rounding", ["half_even", "half_up", "floor", "ceil", "toward_zero"])
def test_constants_are_rounded_as_planned(net: onnx.ModelProto, rounding: Any) -> None:
    formula: Any = {
        "half_even": np.rint,
        "half_up": lambda x: np.floor(x + 0.5),
        "floor": np.floor,
        "ceil": np.ceil,
        "toward_zero": np.trunc,
    }[rounding]
    weight = view_of(net).constants["fc.w"]
    point = replace(weight_point(Edge("fc.w"), weight, 0), rounding=rounding)
    model = lower_qdq(net, QuantizationPlan("", (point,)), "s8")
    stored = next(
        t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 2
    )
    assert np.array_equal(
        numpy_helper.to_array(stored), np.clip(formula(weight / point.scale[:, None]), -128, 127)
    )


def _refusals(plan: QuantizationPlan) -> list[tuple[str, QuantizationPlan]]:
    scale, zero = np.float32(0.1).reshape(()), np.zeros((), np.int64)
    return [
        ("unknown tensor 'x22'", QuantizationPlan("", (QuantPoint(Edge("x22"), scale, zero),))),
        ("unknown node 'nobody'", QuantizationPlan("", (QuantPoint(Edge("x2", "nobody", 0), scale, zero),))),
        ("is not 'x2'", QuantizationPlan("", (QuantPoint(Edge("x2", "add", 0), scale, zero),))),
        ("not a float tensor", QuantizationPlan("", (QuantPoint(Edge("picture"), scale, zero),))),
        ("not symmetric", QuantizationPlan("", (QuantPoint(Edge("x2"), scale, zero, mode="dynamic"),))),
        (
            "mode weight-only",
            QuantizationPlan("", (QuantPoint(Edge("x2"), scale, zero, mode="weight-only"),)),
        ),
        ("rounding floor", QuantizationPlan("", (QuantPoint(Edge("x2"), scale, zero, rounding="floor"),))),
        (
            "tied edges have different scales",
            QuantizationPlan(
                "",
                (QuantPoint(Edge("x2"), scale, zero), QuantPoint(Edge("x7"), scale * 2, zero)),
                ties=(frozenset({Edge("x2"), Edge("x7")}),),
            ),
        ),
        (
            "wrong number of scales",
            QuantizationPlan(
                "", (QuantPoint(Edge("fc.w"), np.ones(3, np.float32), np.zeros(3, np.int64), axis=0),)
            ),
        ),
        (
            "not symmetric",
            QuantizationPlan("", (QuantPoint(Edge("x2"), scale, zero + 3, signed=False),)),
        ),
    ]


@pytest.mark.parametrize("index", range(10))
def test_plans_that_do_not_fit_are_refused_by_name(
    net: onnx.ModelProto, plan: QuantizationPlan, index: Any
) -> None:
    words, broken = _refusals(plan)[index]
    with pytest.raises(PlanError) as caught:
        lower(net, broken, "s8")
    assert words in str(caught.value)


def test_an_unknown_encoding_is_refused_with_the_nearest(
    net: onnx.ModelProto, plan: QuantizationPlan
) -> None:
    with pytest.raises(RequestError, match="did you mean 'asymmetric'"):
        lower(net, plan, "asymetric")


@pytest.mark.slow
@pytest.mark.material
def test_signed_and_unsigned_agree_on_a_real_detector(material: Path) -> None:
    """YOLOX-Nano with a min-max plan over all its convolutions, on real pictures."""
    spec = PreprocessSpec(width_px=416, height_px=416, anchor="top-left", channel_order="BGR", scale=1.0)
    model = fold_input(load_graph(material / "models" / "yolox_nano_416.onnx"), spec)
    files = sorted((material / "calibration" / "coco100").rglob("*.jpg"))[:4]
    pictures = [
        Preprocessor(spec).prepare(np.asarray(cv2.imread(str(file))), copy=True).tensor for file in files
    ]
    plan = simple_plan(model.proto, model.view, pictures=pictures)
    signed, unsigned = (answers(lower(model.proto, plan, encoding), pictures) for encoding in ("s8", "u8"))
    for one, other in zip(signed, unsigned, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in model.view.output_names)
