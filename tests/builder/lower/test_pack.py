"""Packed weights: every width and shape comes back as it went in, and runtimes unpack it once, at load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from avq.builder.graph.view import view_of
from avq.builder.lower import lower, saturation_probe
from avq.builder.lower.grid import quantize_constant, spread
from avq.builder.lower.model import Model
from avq.builder.lower.pack import pack, write_unpacking
from avq.bundle.plan import plan_from_parts, plan_to_parts
from avq.engines import builtin_engines, engine_by_name
from avq.errors import PlanError
from avq.types import Edge, QuantizationPlan, QuantPoint, SessionOptions
from tests.builder.lower.lowering_nets import answers, picture, simple_plan, small_net

BITS = (1, 2, 3, 4, 5, 6, 7)


def unpacked(integers: np.ndarray, bits: int, *, signed: bool) -> tuple[np.ndarray, int]:
    """What onnxruntime, rewriting nothing, makes of the packed file; and the bytes of its packed parts."""
    graph = helper.make_graph(
        [], "g", [], [helper.make_tensor_value_info("out", TensorProto.FLOAT, integers.shape)]
    )
    model = Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8))
    nodes, result = write_unpacking(model, "w", integers, bits, signed=signed)
    model.replace_nodes([*nodes, helper.make_node("Identity", [result], ["out"], name="end")])
    stored = sum(len(t.raw_data) for t in model.graph.initializer if t.name.startswith("w/packed"))
    session = engine_by_name("onnxruntime").open(
        model.proto.SerializeToString(), SessionOptions(optimise=False)
    )
    return np.array(session.run({})["out"]), stored


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from(BITS),
    signed=st.booleans(),
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_unpacking_returns_what_was_packed(bits: Any, signed: Any, shape: Any, seed: Any) -> None:
    rng = np.random.default_rng(seed)
    if bits == 1:
        integers = rng.choice(np.array([-1, 1]), shape)
    else:
        low = -(1 << (bits - 1)) if signed else 0
        integers = rng.integers(low, low + (1 << bits), shape)
    got, stored = unpacked(integers, bits, signed=signed)
    assert got.dtype == np.float32 and np.array_equal(got, integers)
    assert stored <= -(-integers.size * bits // 8) + 2


@pytest.mark.parametrize("bits", BITS)
def test_packing_wastes_nothing(bits: Any) -> None:
    levels = np.random.default_rng(bits).integers(0, 1 << bits, 640)
    assert sum(plane.data.nbytes for plane in pack(levels, bits)) == 80 * bits


def packed_plan(net: onnx.ModelProto, bits: int, *, data: bool) -> QuantizationPlan:
    """Every weight in ``bits`` bits; with or without INT8 data."""
    plan, constants = simple_plan(net), view_of(net).constants
    mode: Any = "static" if data else "weight-only"
    points = []
    for point in plan.points:
        if point.edge.tensor not in constants:
            points += [point] if data else []
            continue
        peak = point.scale * 127
        scale = (peak / max((1 << (bits - 1)) - 1, 1)).astype(np.float32)
        points.append(replace(point, scale=scale, bits=bits, mode=mode, packed=True))
    return replace(plan, points=tuple(points))


def with_planned_weights(net: onnx.ModelProto, plan: QuantizationPlan) -> dict[str, np.ndarray]:
    """The numbers the plan means, in numpy, as overrides of a float model."""
    constants, numbers = view_of(net).constants, {}
    for point in plan.points:
        if point.edge.tensor in constants:
            weight = constants[point.edge.tensor]
            levels = quantize_constant(weight, point).astype(np.float32)
            numbers[point.edge.tensor] = levels * spread(point.scale, weight.shape, point)
    return numbers


@pytest.mark.parametrize("bits", [*BITS, 8])
@pytest.mark.parametrize("data", [False, True])
def test_the_reference_computes_the_planned_numbers(bits: Any, data: bool) -> None:
    net = small_net()
    plan = packed_plan(net, bits, data=data)
    numbers = with_planned_weights(net, plan)
    floats = tuple(p for p in plan.points if p.edge.tensor not in numbers)
    meant = lower(net, replace(plan, points=floats, overrides=numbers), "u8")
    for encoding in ("s8", "u8", "asymmetric"):
        model = lower(net, plan, encoding)
        for got, wanted in zip(answers(model, [picture(0)]), answers(meant, [picture(0)]), strict=True):
            for name, value in wanted.items():
                np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [*BITS, 8])
def test_every_runtime_opens_packed_weights(bits: Any) -> None:
    net = small_net()
    model = lower(net, packed_plan(net, bits, data=False), "u8")
    wanted = answers(model, [picture(0)])[0]
    for engine in builtin_engines():
        if engine.status().can_run:
            got = engine.open(model, SessionOptions()).infer(picture(0))
            for name, value in wanted.items():
                np.testing.assert_allclose(got[name], value, rtol=1e-3, atol=1e-3)


def test_asymmetric_weights_keep_their_zero_point() -> None:
    net = small_net()
    point = QuantPoint(
        Edge("fc.w"),
        np.full(5, 0.3, np.float32),
        np.arange(5),
        axis=0,
        bits=3,
        signed=False,
        mode="weight-only",
        packed=True,
    )
    weight = view_of(net).constants["fc.w"]
    numbers = (quantize_constant(weight, point) - np.arange(5)[:, None]) * np.float32(0.3)
    got = answers(lower(net, QuantizationPlan("", (point,)), "asymmetric"), [picture(0)])[0]
    meant = QuantizationPlan("", overrides={"fc.w": numbers.astype(np.float32)})
    np.testing.assert_allclose(
        got["scores"], answers(lower(net, meant, "u8"), [picture(0)])[0]["scores"], atol=1e-5
    )


def test_one_bit_and_packed_belong_on_constants() -> None:
    scale, zero = np.float32(0.1).reshape(()), np.zeros((), np.int64)
    for point in (
        QuantPoint(Edge("x2"), scale, zero, bits=1),
        QuantPoint(Edge("x2"), scale, zero, packed=True),
    ):
        with pytest.raises(PlanError, match="only constants are packed"):
            lower(small_net(), QuantizationPlan("", (point,)), "u8")
    with pytest.raises(PlanError, match="no grid of 1 bits"):
        QuantPoint(Edge("x2"), scale, zero, bits=1, signed=False)


def test_a_packed_plan_survives_the_bundle_and_older_plans_keep_their_digest() -> None:
    plan = packed_plan(small_net(), 3, data=True)
    assert plan_from_parts(*plan_to_parts(plan)).digest == plan.digest
    assert all("packed" not in p.settings() for p in simple_plan(small_net()).points)


def test_the_probe_does_not_carry_the_float_weights_along() -> None:
    net = small_net()
    plan = packed_plan(net, 2, data=True)
    probe, floats = saturation_probe(net, plan), saturation_probe(net, without_weights(plan, net))
    packed = weight_bytes(net, probe)
    assert packed < weight_bytes(net, floats) / 8
    # The weights are those that serve: the same ratios as of a float network with them.
    meant = replace(without_weights(plan, net), overrides=with_planned_weights(net, plan))
    got, wanted = (answers(model, [picture(0)])[0] for model in (probe, saturation_probe(net, meant)))
    assert got.keys() == wanted.keys() and len(got) >= 6
    for name, value in wanted.items():
        assert got[name] == pytest.approx(value, abs=2e-3)


def test_a_plan_with_float_data_has_nothing_to_probe() -> None:
    net = small_net()
    assert not saturation_probe(net, packed_plan(net, 4, data=False)).graph.output


def without_weights(plan: QuantizationPlan, net: onnx.ModelProto) -> QuantizationPlan:
    constants = view_of(net).constants
    return replace(plan, points=tuple(p for p in plan.points if p.edge.tensor not in constants))


def weight_bytes(net: onnx.ModelProto, model: onnx.ModelProto) -> int:
    """Bytes of the weights of ``net`` in ``model``, whatever form they have there."""
    names = {name for name in view_of(net).constants if name.endswith(".w")}
    return sum(
        len(t.raw_data)
        for t in model.graph.initializer
        if t.name in names or (t.name.split("/")[0] in names and "packed" in t.name)
    )


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(0, 40),
    levels=st.integers(1, 9),
    kind=st.sampled_from(["f4", "f2", "f8", "i8"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_overrides_survive_the_bundle_bit_by_bit(
    rows: Any, columns: Any, levels: Any, kind: Any, seed: Any
) -> None:
    rng = np.random.default_rng(seed)
    grid = np.concatenate([rng.normal(size=(rows, levels)), np.full((rows, 1), -0.0)], axis=1).astype(kind)
    array = np.take_along_axis(grid, rng.integers(0, levels + 1, (rows, columns)), axis=1)
    for shaped in (array, array.reshape(rows, columns, 1, 1), array.reshape(-1)):
        plan = QuantizationPlan("", overrides={"w": shaped, "b": grid[0], "one": np.float32(3.0).reshape(())})
        assert plan_from_parts(*plan_to_parts(plan)).digest == plan.digest


def test_rounded_weights_do_not_lie_in_the_plan_as_floats() -> None:
    levels = np.random.default_rng(0).integers(-4, 4, (64, 64, 3, 3))
    weights = (levels * np.linspace(0.01, 0.1, 64)[:, None, None, None]).astype(np.float32)
    _, arrays = plan_to_parts(QuantizationPlan("", overrides={"w": weights}))
    assert len(arrays) < 0.125 * weights.nbytes


@pytest.mark.parametrize("bits", [1, 3, 6])
@pytest.mark.parametrize("data", [False, True])
def test_runtimes_unpack_once_when_they_load(tmp_path: Path, bits: int, data: bool) -> None:
    """What is left to do per inference holds no table: the weights were unpacked before."""
    ort, ov = pytest.importorskip("onnxruntime"), pytest.importorskip("openvino")
    net = small_net()
    model = lower(net, packed_plan(net, bits, data=data), "asymmetric")
    assert "Gather" in {node.op_type for node in onnx.ModelProto.FromString(model).graph.node}
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "loaded.onnx"), 4
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    left = {node.op_type for node in onnx.load(tmp_path / "loaded.onnx").graph.node}
    assert "Gather" not in left and (data or "DequantizeLinear" not in left)
    compiled = ov.Core().compile_model(ov.Core().read_model(model), "CPU")
    kinds = {op.get_rt_info()["layerType"].astype(str) for op in compiled.get_runtime_model().get_ops()}
    assert "Gather" not in kinds and kinds & {"Convolution", "Deconvolution"}
