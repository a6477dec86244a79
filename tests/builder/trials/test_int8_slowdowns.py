"""Why INT8 is slower: each cause is found where it is, priced where it was measured, and comes with a fix."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from avq.builder.graph.view import view_of
from avq.builder.trials.int8_slowdowns import Context, Slowdown, find_slowdowns
from avq.builder.trials.layer_times import LayerCosts
from avq.builder.trials.serving import Candidate
from avq.types import Edge, QuantizationPlan
from tests.builder.lower.lowering_nets import data_point, simple_plan, small_net, with_points

VNNI = "x86-64 avx2 avx512f avx512_vnni"


def causes(
    plan: QuantizationPlan | None = None,
    *,
    engine: str = "onnxruntime",
    encoding: str = "u8",
    runs_in: str = "int8+f32",
    isa: str = VNNI,
    costs: LayerCosts | None = None,
) -> dict[str, Slowdown]:
    net = small_net()
    here = Context(
        view_of(net), simple_plan(net) if plan is None else plan, Candidate(engine, encoding, "f32"), runs_in,
        isa, costs,
    )  # fmt: skip
    found = find_slowdowns(here)
    assert all(cause.what and cause.fix for cause in found)
    return {cause.name: cause for cause in found}


def test_the_float_model_has_no_causes() -> None:
    assert causes(QuantizationPlan("")) == {}


def test_operators_that_integers_do_not_speed_up_are_named() -> None:
    found = causes()
    assert found["depthwise"].nodes == ("depth",)
    assert found["single-rows"].nodes == ("fc",)
    assert {"stem", "point"} <= set(found["few-channels"].nodes)
    assert "no-dot-product" not in found and "ran-in-float" not in found and "signed-on-x86" not in found


def test_a_curved_activation_costs_in_onnxruntime_only() -> None:
    assert "depth" in causes()["curved-activations"].nodes
    assert "curved-activations" not in causes(engine="openvino", encoding="asymmetric")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("signed-on-x86", {"encoding": "s8"}),
        ("no-dot-product", {"isa": "x86-64 avx2"}),
        ("ran-in-float", {"runs_in": "f32"}),
    ],
)
def test_engine_and_processor_are_blamed_when_it_is_them(name: str, change: dict[str, Any]) -> None:
    assert name in causes(**change) and name not in causes()


def test_an_engine_that_was_not_asked_is_not_accused() -> None:
    assert "ran-in-float" not in causes(runs_in="")


def test_arm_is_not_blamed_for_x86() -> None:
    assert not {"signed-on-x86", "no-dot-product"} & set(causes(encoding="s8", isa="aarch64 asimd asimddp"))


def test_a_float_operator_amid_integers_is_a_boundary() -> None:
    plan = simple_plan(small_net())
    island = replace(plan, points=tuple(p for p in plan.points if p.edge.tensor not in ("depth.w", "x2")))
    assert "boundaries" not in causes()
    costs = LayerCosts({}, {}, 0, 300_000)
    boundary = causes(island, costs=costs)["boundaries"]
    assert {"stem", "point"} <= set(boundary.nodes) and boundary.ms == pytest.approx(0.3)


def test_concatenations_of_unlike_scales_and_quantized_outputs_are_found() -> None:
    plan = simple_plan(small_net())
    apart = with_points(
        plan, data_point(Edge("x7", "cat", 0), -1, 1), data_point(Edge("x2", "cat", 1), -4, 4)
    )
    assert causes(apart)["unequal-concats"].nodes == ("cat",)
    alike = with_points(
        plan, data_point(Edge("x7", "cat", 0), -4, 4), data_point(Edge("x2", "cat", 1), -4, 4)
    )
    assert "unequal-concats" not in causes(alike)
    output = view_of(small_net()).output_names[0]
    assert output in causes(with_points(plan, data_point(Edge(output), -4, 4)))["quantized-outputs"].what


def test_what_was_measured_comes_first_and_with_its_milliseconds() -> None:
    costs = LayerCosts({"depth": 100_000, "fc": 50_000}, {"depth": 900_000, "fc": 20_000}, 0, 300_000)
    found = causes(costs=costs)
    assert found["depthwise"].ms == pytest.approx(0.8) and found["single-rows"].ms == pytest.approx(-0.03)
    measured = [cause.ms for cause in found.values() if cause.ms is not None]
    assert measured == sorted(measured, reverse=True) and np.isfinite(measured).all()
