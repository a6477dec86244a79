"""DLA's files: no pairs, a line per float tensor, the plan's own scales and precisions; the parser takes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from avq.builder.cross_compile.dla import lower_implicit
from avq.builder.cross_compile.fp16 import activation_peaks, to_fp16
from avq.builder.encodings.trt_cache import parse_cache
from avq.builder.graph.view import view_of
from avq.engines import engine_by_name
from avq.errors import PlanError
from avq.types import Edge
from tests.builder.lint.real_parser import real_parser
from tests.builder.lower.lowering_nets import answers, picture, simple_plan, small_net


@pytest.fixture(scope="module")
def net() -> Any:
    return small_net()


@pytest.fixture(scope="module")
def plan(net: Any) -> Any:
    view = view_of(net)
    peaks = activation_peaks(net, view, [picture(0)], engine_by_name("onnxruntime"))
    planned = to_fp16(view, simple_plan(net, view), peaks)
    return replace(planned, ranges={name: (-peak, peak) for name, peak in peaks.items()})


def test_the_model_has_no_pairs_and_computes_the_float_network(net: Any, plan: Any) -> None:
    written = lower_implicit(net, plan)
    model = onnx.load_model_from_string(written.model)
    assert not [node for node in model.graph.node if "QuantizeLinear" in node.op_type]
    for ours, theirs in zip(answers(written.model, [picture(1)]), answers(net, [picture(1)]), strict=True):
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_every_float_tensor_has_a_scale_and_the_plans_are_exact(net: Any, plan: Any) -> None:
    written = lower_implicit(net, plan)
    scales = {entry.tensor: entry.scale for entry in parse_cache(written.cache).entries}
    made = [name for node in net.graph.node for name in node.output]
    assert list(scales) == made and all(scale > 0 for scale in scales.values())
    own = {p.edge.tensor: float(p.scale) for p in plan.points if p.edge.tensor in scales}
    assert own and {name: scales[name] for name in own} == own
    free = next(name for name in scales if name not in own)
    assert scales[free] == pytest.approx(plan.ranges[free][1] / 127)


def test_layers_keep_the_plans_precisions(net: Any, plan: Any) -> None:
    precisions = lower_implicit(net, plan).precisions
    assert {"int8", "fp16"} <= set(precisions.values())
    assert {n for n, p in precisions.items() if p == "int8"} == {
        n for n, choice in plan.precisions.items() if choice.precision == "int8"
    }


def test_the_same_plan_gives_the_same_bytes(net: Any, plan: Any) -> None:
    assert lower_implicit(net, plan) == lower_implicit(net, plan)


def test_the_parser_takes_the_model(net: Any, plan: Any) -> None:
    parser = real_parser()
    model = lower_implicit(net, plan).model
    assert parser.ask(model).verdict == "accepts" and parser.builds(model) == ""


def test_what_dla_cannot_say_is_refused(net: Any, plan: Any) -> None:
    with pytest.raises(PlanError, match="no range for"):
        lower_implicit(net, replace(plan, ranges={}))
    point = next(p for p in plan.points if p.edge == Edge(p.edge.tensor) and p.edge.tensor in plan.ranges)
    points = tuple(replace(p, bits=6) if p is point else p for p in plan.points)
    with pytest.raises(PlanError, match="cannot be a line"):
        lower_implicit(net, replace(plan, points=points))


def test_a_dead_tensor_gets_a_small_scale(net: Any, plan: Any) -> None:
    free = next(t for t in plan.ranges if Edge(t) not in plan.by_edge)
    dead = replace(plan, ranges={**plan.ranges, free: (0.0, 0.0)})
    scales = {e.tensor: e.scale for e in parse_cache(lower_implicit(net, dead).cache).entries}
    assert 0 < scales[free] < 1e-9 and scales[free] >= np.finfo(np.float32).tiny
