"""The solver against brute force, the groups of real activations, and the choice on the front."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from avq_mixed.fit import CostModel, Counted, Timing, count, crossings, fit
from avq_mixed.front import Point, choose, front, with_share
from avq_mixed.groups import OUTSIDE, Boundary, Group, boundaries, fusion_groups
from avq_mixed.maps import random_maps
from avq_mixed.sensitivity import Sensitivity, damages, neighbours
from avq_mixed.solve import Problem, candidates, fastest
from avq_mixed.strategy import MixedOptions, MixedQuantizer
from hypothesis import given, settings
from hypothesis import strategies as st

from avq.toolbox import place
from avq.types import (
    Edge,
    Fidelity,
    GraphView,
    Latency,
    MeasuredPlan,
    NodeView,
    PlanScore,
    QuantizationPlan,
    QuantPoint,
    Range,
    TensorView,
)


@st.composite
def problems(draw: Any) -> Any:
    count = draw(st.integers(2, 7))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    ends = [(w, r) for w in range(-1, count) for r in range(-1, count) if w != r and rng.random() < 0.4]
    edges = tuple(Boundary(w, r, 1) for w, r in ends)
    cost = CostModel(1.0, rng.normal(size=count), rng.random(len(edges)), rng.random(len(edges)), edges)
    # Whole hundredths, and limits between them: no solver's tolerance decides.
    return Problem(cost, rng.integers(0, 100, count) / 100, rng.integers(0, 100, count) / 100)


def every_map(problem: Any) -> Any:
    return [np.array(bits, bool) for bits in itertools.product([False, True], repeat=problem.damage.size)]


@settings(max_examples=40, deadline=None)
@given(problems(), st.integers(0, 300), st.integers(0, 100))
def test_no_map_within_the_limits_is_faster(problem: Any, damage_percent: Any, share_percent: Any) -> None:
    max_damage, min_share = (damage_percent + 0.5) / 100, (share_percent - 0.5) / 100
    allowed = [
        m for m in every_map(problem) if problem.damage @ m <= max_damage and problem.share @ m >= min_share
    ]
    found = fastest(problem, max_damage=max_damage, min_share=min_share)
    if found is None:
        assert not allowed
        return
    assert problem.damage @ found <= max_damage + 1e-6 and problem.share @ found >= min_share - 1e-6
    best = min(problem.cost.predict(m) for m in allowed)
    assert problem.cost.predict(found) == pytest.approx(best, abs=1e-6)


def test_candidates_are_unlike_and_hold_one_with_much_int8() -> None:
    rng = np.random.default_rng(3)
    problem = Problem(
        CostModel(1.0, rng.normal(size=12) * 0.01, np.zeros(0), np.zeros(0), ()),
        rng.dirichlet(np.ones(12)),
        np.full(12, 1 / 12),
    )
    found = candidates(problem, 5, (0.9,))
    assert len({m.tobytes() for m in found}) == len(found)
    assert any(problem.share @ m >= 0.9 for m in found)
    assert min(problem.damage @ m for m in found) < 0.05


def test_no_candidate_has_less_int8_than_asked_for() -> None:
    rng = np.random.default_rng(4)
    slower = CostModel(1.0, np.abs(rng.normal(size=12)) * 0.01, np.zeros(0), np.zeros(0), ())
    problem = Problem(slower, rng.dirichlet(np.ones(12)), np.full(12, 1 / 12))
    assert not candidates(problem, 5, ())  # float is fastest
    found = candidates(problem, 5, (0.6, 0.92), 0.75)
    assert found and all(problem.share @ m >= 0.75 - 1e-9 for m in found)


def test_the_fit_finds_what_boundaries_cost() -> None:
    groups = [Group(f"g{i}", "depthwise" if i % 3 == 0 else "dense", (f"g{i}",), (), 1) for i in range(20)]
    edges = [Boundary(i, i + 1, 100) for i in range(19)]
    rng = np.random.default_rng(0)
    gains = rng.normal(-0.01, 0.01, 20)
    maps = [rng.random(20) < 0.5 for _ in range(60)]

    def truth(int8: Any) -> Any:
        up, down = crossings(edges, int8)
        return 1.0 + gains @ int8 + 0.004 * up.sum() + 0.002 * down.sum()

    counted = Counted(np.full(20, 5e4), 5e4 + 1e6 * gains)
    model = fit(groups, edges, counted, [Timing(m, truth(m), 0) for m in maps[:30]])
    wrong = [abs(model.predict(m) - truth(m)) for m in maps[30:]]
    constant = [abs(np.median([truth(n) for n in maps[30:]]) - truth(m)) for m in maps[30:]]
    assert np.median(wrong) < 0.3 * np.median(constant)
    assert (model.up >= 0).all() and (model.down >= 0).all()


def test_a_session_that_lies_badly_and_a_lucky_float_session_do_not_bend_the_fit() -> None:
    groups = [Group(f"g{i}", "dense", (f"g{i}",), (), 1) for i in range(12)]
    rng = np.random.default_rng(1)
    maps = [rng.random(12) < 0.5 for _ in range(40)]

    def timings(*, bad: float, shift: float) -> list[Timing]:
        measured = [1.0 - 0.01 * m.sum() + (bad if i == 5 else 0.0) for i, m in enumerate(maps)]
        calls = [i // 10 for i in range(len(maps))]
        lucky = [ratio + (shift if call == 3 else 0.0) for ratio, call in zip(measured, calls, strict=True)]
        return [Timing(m, ratio, call) for m, ratio, call in zip(maps, lucky, calls, strict=True)]

    clean = fit(groups, [], None, timings(bad=0.0, shift=0.0))
    disturbed = fit(groups, [], None, timings(bad=0.3, shift=0.015))
    assert max(abs(clean.predict(m) - disturbed.predict(m)) for m in maps) < 0.012


def test_a_group_is_counted_beside_many_neighbours() -> None:
    groups = [Group("a", "dense", ("a", "a_relu"), (), 1), Group("b", "dense", ("b",), (), 1)]
    maps = [np.array(m, bool) for m in ([0, 0], [1, 1], [0, 1], [1, 0], [0, 1])]
    times = [{"a": 8 + 2 * i, "a_relu": 1, "b": 10 - 4 * int(m[1])} for i, m in enumerate(maps)]
    found = count(groups, maps, times)
    assert found is not None
    assert found.float_ns.tolist() == [13.0, 10.0] and found.int8_ns.tolist() == [13.0, 6.0]
    assert count(groups, maps, None) is None


def test_large_networks_are_judged_in_runs_of_one_kind() -> None:
    kinds = ["dense"] * 5 + ["depthwise"] + ["dense"] * 2
    groups = [Group(f"g{i}", kind, (), (), 1) for i, kind in enumerate(kinds)]
    assert neighbours(groups, 1) == [[i] for i in range(8)]
    assert neighbours(groups, 3) == [[0, 1, 2], [3, 4], [5], [6, 7]]


def test_damages_add_up_and_follow_both_noise_and_boxes() -> None:
    found = damages([Sensitivity(1e-4, 0.0), Sensitivity(3e-4, 0.02)])
    assert found.sum() == pytest.approx(1.0) and found[1] > found[0] > 0


def test_random_maps_reach_from_float_to_int8() -> None:
    groups = [Group(f"g{i}", "dense", (), (), 1) for i in range(40)]
    shares = [m.mean() for m in random_maps(groups, 20, 1)]
    assert min(shares) < 0.3 and max(shares) > 0.7
    assert all(
        (a == b).all() for a, b in zip(random_maps(groups, 5, 1), random_maps(groups, 5, 1), strict=True)
    )


def silu_net() -> GraphView:
    """images -> conv a + SiLU -> conv b -> Add(a's output) -> pool -> conv c, with c's output and pool's."""
    shape = (1, 4, 8, 8)
    nodes = (
        NodeView("a", "Conv", ("images", "wa"), ("a0",), {}),
        NodeView("a_sigmoid", "Sigmoid", ("a0",), ("a1",), {}),
        NodeView("a_mul", "Mul", ("a0", "a1"), ("a2",), {}),
        NodeView("b", "Conv", ("a2", "wb"), ("b0",), {}),
        NodeView("add", "Add", ("b0", "a2"), ("b1",), {}),
        NodeView("pool", "MaxPool", ("b1",), ("p",), {}),
        NodeView("join", "Concat", ("p", "a2"), ("j",), {}),
        NodeView("c", "Conv", ("j", "wc"), ("c0",), {}),
        NodeView("head", "Conv", ("c0", "wh"), ("out",), {}),
    )
    names = ("images", "a0", "a1", "a2", "b0", "b1", "p", "j", "c0", "out")
    tensors = {name: TensorView(name, "float32", shape) for name in names}
    weights = {name: np.ones((4, 4, 1, 1), np.float32) for name in ("wa", "wb", "wc", "wh")}
    return GraphView(nodes, (tensors["images"],), (tensors["out"],), tensors, weights, 17, "digest")


def test_an_activation_and_a_residual_add_stay_with_their_convolution() -> None:
    graph = silu_net()
    placements = place(graph, {"head"})
    groups = fusion_groups(graph, placements)
    assert [g.nodes for g in groups] == [("a", "a_sigmoid", "a_mul"), ("b", "add"), ("c",)]
    assert [g.macs for g in groups] == [4 * 4 * 64] * 3


def test_boundaries_run_through_pools_and_concatenations() -> None:
    graph = silu_net()
    found = {(b.writer, b.reader) for b in boundaries(graph, place(graph, {"head"}))}
    assert found == {(OUTSIDE, 0), (0, 1), (1, 2), (0, 2), (2, OUTSIDE)}


def point(name: str, ratio: float, lost: float, *, is_float: bool = False, size: int = 100) -> Point:
    points = () if is_float else (QuantPoint(Edge("t"), np.ones((), np.float32), np.zeros((), np.int64)),)
    score = PlanScore(Fidelity(98, 300, lost, 0.0), {"out": 30.0})
    latency = Latency(10 * ratio, 10 * ratio, ratio, ratio - 0.005, ratio + 0.005, "openvino float bf16")
    served = MeasuredPlan("openvino", score, latency)
    return Point(name, np.zeros(2, bool), QuantizationPlan("g", points), served, 0.5, size, 1.0)


FLOAT = point("float", 1.0, 0.0, is_float=True, size=400)
GOOD, BOLD, RUINED = point("good", 0.9, 0.003), point("bold", 0.88, 0.008), point("ruined", 0.6, 0.3)


def test_the_knee_gains_most_of_the_time_for_little_loss() -> None:
    chosen, why = choose([FLOAT, GOOD, BOLD, RUINED], budget_ms=None, max_drop=None)
    assert chosen is GOOD and "knee" in why


def test_under_a_drop_the_fastest_and_under_a_budget_the_most_accurate() -> None:
    points = [FLOAT, GOOD, BOLD, RUINED]
    assert choose(points, budget_ms=None, max_drop=1.0)[0] is BOLD
    assert choose(points, budget_ms=9.5, max_drop=None)[0] is GOOD
    assert choose(points, budget_ms=20.0, max_drop=None)[0] is FLOAT
    assert choose(points, budget_ms=1.0, max_drop=None)[0] is BOLD


def test_a_least_share_of_int8_leaves_no_way_out_to_float() -> None:
    full = replace(point("slow but whole", 1.05, 0.002), share=0.9)
    float_ = replace(FLOAT, share=0.0)
    assert with_share([float_, GOOD, full], 0.85) == [full]
    assert with_share([float_, GOOD], 0.85) == [GOOD]  # none has it: the most there is
    assert choose([full], budget_ms=None, max_drop=None)[0] is full
    least_lossy, why = choose([RUINED, point("bad", 0.7, 0.2)], budget_ms=None, max_drop=None)
    assert least_lossy.name == "bad" and "none is inside" in why


def test_float_is_the_answer_when_int8_is_slower_or_ruined() -> None:
    assert choose([FLOAT, point("slow", 1.1, 0.0), RUINED], budget_ms=None, max_drop=None)[0] is FLOAT


def test_with_labels_the_map_decides_and_not_the_boxes() -> None:
    def labelled(name: str, ratio: float, lost: float, drop: float) -> Point:
        measured = point(name, ratio, lost)
        return replace(
            measured,
            served=replace(measured.served, score=replace(measured.served.score, map_drop_percent=drop)),
        )

    keeps_map, keeps_boxes = labelled("keeps mAP", 0.8, 0.02, 0.5), labelled("keeps boxes", 0.7, 0.0, 3.0)
    points = [FLOAT, keeps_map, keeps_boxes]
    assert choose(points, budget_ms=None, max_drop=None)[0] is keeps_map
    assert choose(points, budget_ms=None, max_drop=4.0)[0] is keeps_boxes
    assert choose(points, budget_ms=9.0, max_drop=4.0)[0] is keeps_map
    assert "of the mAP" in choose(points, budget_ms=None, max_drop=1.0)[1]


def test_times_that_cannot_be_told_apart_beat_nobody() -> None:
    near = point("near", 0.903, 0.004)
    worse = point("worse", 0.95, 0.02)
    assert front([GOOD, near, worse]) == [GOOD, near]


def test_a_model_with_nothing_to_quantize_stays_float_and_says_so() -> None:
    graph, bench = silu_net(), cast(Any, NothingRuns())
    plan = MixedQuantizer().plan(graph, bench, MixedOptions())
    assert plan.points == () and bench.reasons == ["INT8 did not win: nothing here can run in integers"]


def test_a_model_whose_int8_no_engine_runs_rightly_stays_float_and_says_so() -> None:
    graph, bench = silu_net(), cast(Any, NothingRuns())
    bench.keep_float = {"head": "the head"}
    plan = MixedQuantizer().plan(graph, bench, MixedOptions(calibrator="minmax"))
    assert plan.points == () and "no engine" in bench.reasons[0]
    assert {p.precision for p in plan.precisions.values()} == {"fp32"}


class NothingRuns:
    """A workbench on a machine where every quantized plan fails its check."""

    symmetric_only = False

    def __init__(self) -> None:
        self.keep_float = dict.fromkeys(("a", "b", "c", "head"), "requested")
        self.reasons: list[str] = []

    def collect(self, requests: Any) -> Any:
        return self

    def range(self, tensor: Any, method: Any, **_: Any) -> Any:
        return Range(-1.0, 1.0)

    def serve(self, plans: Any) -> Any:
        return [None] * len(plans)

    def conclude(self, reason: Any) -> None:
        self.reasons.append(reason)
