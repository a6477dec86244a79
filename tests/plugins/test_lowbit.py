"""What ``lowbit`` decides: the order of reductions, how far they go, what each target may hold."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import onnx
import pytest
from avq_lowbit import LowbitOptions, LowbitQuantizer
from avq_lowbit.corrections import KnownMoments
from avq_lowbit.search import Limits, Search
from avq_lowbit.sensitivity import spaced, walk
from hypothesis import given, settings
from hypothesis import strategies as st

from avq.builder.graph.view import view_of
from avq.builder.lower import lower
from avq.types import Fidelity, Figure, Latency, MeasuredPlan, MomentRequest, PlanScore, QuantizationPlan
from tests.builder.lower.lowering_nets import answers, picture, small_net

SIZES = np.array([8.0, 6.0, 4.0, 3.0, 2.0, 1.0])


@settings(max_examples=50, deadline=None)
@given(groups=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_the_walk_always_takes_the_cheapest_reduction(groups: Any, seed: Any) -> None:
    rng = np.random.default_rng(seed)
    damage = np.cumsum(rng.random((groups, 6)), axis=1)
    size = rng.integers(1, 1000, (groups, 1)) * SIZES
    path = walk(damage, size)
    assert path[0] == (0,) * groups and path[-1] == (5,) * groups and len(path) == 5 * groups + 1
    for before, after in itertools.pairwise(path):
        changed = [g for g in range(groups) if before[g] != after[g]]
        assert len(changed) == 1 and after[changed[0]] == before[changed[0]] + 1

        def price(g: Any, state: Any = before) -> Any:
            k = state[g]
            return (damage[g, k + 1] - damage[g, k]) / (size[g, k] - size[g, k + 1])

        assert price(changed[0]) == min(price(g) for g in range(groups) if before[g] < 5)


def test_the_walk_never_enters_a_width_that_is_not_allowed() -> None:
    damage = np.array([[0.0, np.inf], [0.0, 5.0]])
    assert walk(damage, np.array([[8.0, 4.0], [8.0, 4.0]])) == [(0, 0), (0, 1)]
    assert walk(np.array([[0.0, np.inf]]), np.array([[8.0, 4.0]])) == [(0,)]


def test_points_of_the_curve_are_spaced_in_the_logarithm_and_hold_both_ends() -> None:
    sizes = list(2.0 ** -np.arange(21.0))
    assert spaced(sizes, 5) == [0, 5, 10, 15, 20]
    assert spaced([3.0], 5) == [0]


def score(lost: float) -> PlanScore:
    return PlanScore(Fidelity(10, 1000, lost, 0.0), {"y": 30.0})


def test_the_search_finds_how_far_the_limit_reaches() -> None:
    """The loss grows along the path; few points are judged, and each once."""
    path = [(step,) for step in range(101)]
    judged: list[int] = []

    def judge(bits: Any) -> Any:
        judged.append(bits[0])
        return QuantizationPlan(""), score((bits[0] / 100) ** 4)

    search = Search(path, [1000 - 9 * s for s in range(101)], judge, Limits(1.0, margin=0.9))
    search.sketch(6)
    search.narrow(8)
    best = search.accurate()[0]
    assert best.score.fidelity is not None
    assert best.score.fidelity.lost <= 0.009 and best.index == max(
        i for i in range(101) if (i / 100) ** 4 <= 0.009
    )
    assert len(judged) == len(set(judged)) <= 14
    assert search.within(500).index == 56 and search.within(1).index == 100


class Ruled:
    """A workbench over a real graph whose judgement is a rule of the test."""

    budget_ms = None
    max_drop = None

    def __init__(self, *, symmetric_only: bool = False, keep_float: Mapping[str, str] | None = None) -> None:
        self.symmetric_only = symmetric_only
        self.keep_float = {"boxes_conv": "head"} if keep_float is None else keep_float
        self.notes: dict[str, Sequence[Mapping[str, Any]]] = {}
        self.figures: list[Figure] = []
        self.reasons: list[str] = []
        self.net = small_net()
        self.floats = answers(self.net, [picture(0)])[0]

    def error(self, plan: Any, *, pictures: Any = None) -> Any:
        got = answers(lower(self.net, plan, "u8"), [picture(0)])[0]
        noise = {n: float(((got[n] - v) ** 2).mean() / (v**2).mean()) for n, v in self.floats.items()}
        worst = max(noise.values())
        db = {n: -10.0 * float(np.log10(max(v, 1e-12))) for n, v in noise.items()}
        return PlanScore(Fidelity(1, 1000, min(worst, 1.0), 0.0), db)

    def serve(self, plans: Any) -> Any:
        time = Latency(1.0, 1.0, 1.0, 0.99, 1.01, "float")
        return [MeasuredPlan("engine", self.error(plan), time) for plan in plans]

    def moments(self, requests: Any) -> None:
        raise AssertionError("without correction nothing is summed")

    def note(self, title: Any, rows: Any) -> None:
        self.notes[title] = rows

    def plot(self, figure: Any) -> None:
        self.figures.append(figure)

    def conclude(self, reason: Any) -> None:
        self.reasons.append(reason)


QUICK = {"activations": "float", "correction": False, "points": 8}


def weight_bits(plan: QuantizationPlan) -> dict[str, int]:
    return {p.edge.tensor: p.bits for p in plan.points}


def test_it_goes_as_far_as_the_limit_and_draws_the_way() -> None:
    bench: Any = Ruled()
    bench.max_drop = 2.0
    plan = LowbitQuantizer().plan(view_of(bench.net), bench, LowbitOptions(**QUICK))
    lost = bench.error(plan).fidelity.lost
    assert 0 < lost <= 0.02 and all(p.packed and p.mode == "weight-only" for p in plan.points)
    bits = weight_bits(plan)
    assert "boxes_conv.w" not in bits and min(bits.values()) < 8
    (figure,) = bench.figures
    points = figure.series[0].points
    assert [p.x for p in points] == sorted((p.x for p in points), reverse=True)
    assert sum(p.chosen for p in points) == 1 and figure.y_limit == 1.8
    rows = bench.notes["lowbit: every group"]
    assert {r["bits"] for r in rows} == set(bits.values()) and "INT8 size" in bench.reasons[0]
    assert all(str(bits[f"{r['group']}.w"]) in plan.precisions[r["group"]].reason for r in rows)


def test_a_tighter_limit_keeps_more_bits() -> None:
    def size(limit: float) -> int:
        bench: Any = Ruled()
        bench.max_drop = limit
        plan = LowbitQuantizer().plan(view_of(bench.net), bench, LowbitOptions(**QUICK))
        constants = view_of(bench.net).constants
        return sum(constants[p.edge.tensor].size * p.bits for p in plan.points)

    assert size(0.1) > size(1.0) > size(20.0)


def test_a_wanted_size_is_reached_whatever_it_loses() -> None:
    bench: Any = Ruled()
    options = LowbitOptions(**QUICK, target_mb=0.0014)
    plan = LowbitQuantizer().plan(view_of(bench.net), bench, options)
    chosen = next(r for r in bench.notes["lowbit: the walk"] if r["chosen"])
    assert chosen["weights MB"] <= 0.0014
    everything = LowbitOptions(**QUICK, target_mb=1e-6)
    plan = LowbitQuantizer().plan(view_of(bench.net), bench, everything)
    assert set(weight_bits(plan).values()) == {1} and "cannot be reached" in bench.reasons[-1]


def test_a_target_that_unpacks_nothing_gets_its_own_integers_and_the_reason() -> None:
    bench: Any = Ruled(symmetric_only=True)
    bench.max_drop = 90.0
    plan = LowbitQuantizer().plan(view_of(bench.net), bench, LowbitOptions(**QUICK))
    bits = weight_bits(plan)
    assert bits.pop("fc.w") == 4 and set(bits.values()) == {8} and not any(p.packed for p in plan.points)
    assert "native INT4" in plan.precisions["fc"].reason
    assert "INT4 weights for matrix products only" in plan.precisions["stem"].reason
    kinds = {t.data_type for t in onnx.ModelProto.FromString(lower(bench.net, plan, "s8")).graph.initializer}
    assert {onnx.TensorProto.INT4, onnx.TensorProto.INT8} <= kinds


def test_an_odd_number_of_weights_stays_in_8_bits_where_the_target_packs_pairs() -> None:
    bench: Any = Ruled(symmetric_only=True)
    bench.max_drop = 90.0
    for tensor in bench.net.graph.initializer:
        if tensor.name in (
            "up.w",
            "boxes_conv.w",
            "fc.w",
        ):  # five channels instead of six: 25 weights in the Gemm
            fewer = np.ascontiguousarray(onnx.numpy_helper.to_array(tensor)[:, :5])
            tensor.CopyFrom(onnx.numpy_helper.from_array(fewer, tensor.name))
    del bench.net.graph.value_info[:]
    bench.net = onnx.shape_inference.infer_shapes(bench.net)
    bench.floats = answers(bench.net, [picture(0)])[0]
    plan = LowbitQuantizer().plan(view_of(bench.net), bench, LowbitOptions(**QUICK))
    assert weight_bits(plan)["fc.w"] == 8 and "odd" in plan.precisions["fc"].reason


def test_a_model_without_weights_to_reduce_stays_float() -> None:
    bench: Any = Ruled(keep_float={n.name: "requested" for n in view_of(small_net()).nodes})
    plan = LowbitQuantizer().plan(view_of(bench.net), bench, LowbitOptions())
    assert not plan.points and "left the model float" in bench.reasons[0]


def test_sums_over_the_pictures_are_asked_for_once() -> None:
    keys: list[str] = []

    class Bench:
        def moments(self, requests: Any) -> Any:
            keys.extend(r.key for r in requests)
            return {r.key: np.ones(2) for r in requests}

    known = KnownMoments(cast(Any, Bench()))
    requests = [MomentRequest("a"), MomentRequest("a", "gram", "conv")]
    assert known.moments(requests).keys() == known.moments([*requests, MomentRequest("b")]).keys() - {"b"}
    assert keys == ["a", requests[1].key, "b"]


@pytest.mark.parametrize("given", [{"target_mb": "0"}, {"bits": "4"}, {"activations": "int4"}])
def test_wrong_options_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        LowbitOptions.model_validate(given)


def test_the_limit_is_the_users_or_well_inside_the_gates() -> None:
    bench: Any = Ruled()
    assert Limits.of(bench).accurate(score(0.005)) and not Limits.of(bench).accurate(score(0.006))
    bench.max_drop = 2.0
    assert Limits.of(bench).accurate(score(0.018)) and not Limits.of(bench).accurate(score(0.019))
    shifted = replace(score(0.0), fidelity=Fidelity(1, 100, 0.0, -0.03))
    assert not Limits.of(bench).accurate(shifted)
    assert not Limits().accurate(PlanScore(None, {"y": 19.0})) and Limits().accurate(
        PlanScore(None, {"y": 21.0})
    )


def test_labels_decide_where_there_are_any() -> None:
    assert Limits().accurate(replace(score(0.5), map_drop_percent=1.7))
    assert not Limits().accurate(replace(score(0.0), map_drop_percent=1.9))
