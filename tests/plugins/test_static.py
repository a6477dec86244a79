"""What ``static`` decides, and why it says so: measured choices on a graph with one depthwise convolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pytest
from avq_static import StaticOptions, StaticQuantizer

from avq.builder.calibrate.histogram import Histogram
from avq.builder.calibrate.ranges import HistogramStats
from avq.types import CALIBRATORS, Edge, Fidelity, MomentRequest, PlanScore, QuantizationPlan, StatRequest
from tests.toolbox.graphs import residual_block

AS_PLACED = {"equalize": "off", "rounding": "nearest", "bias_correction": "off"}


class Scored:
    """A workbench over real histograms whose error is a rule of the test."""

    symmetric_only = False
    keep_float: Mapping[str, str] = {}

    def __init__(self, lost: Any) -> None:
        self._lost = lost
        self.plans: list[QuantizationPlan] = []
        self.notes: dict[str, Sequence[Mapping[str, Any]]] = {}
        self.conclusions: list[str] = []

    def collect(self, requests: Sequence[StatRequest]) -> HistogramStats:
        rng = np.random.default_rng(0)
        histograms = {}
        for request in requests:
            histograms[request.tensor] = Histogram()
            histograms[request.tensor].add(rng.laplace(size=20_000).astype(np.float32))
        return HistogramStats(histograms)

    def moments(self, requests: Sequence[MomentRequest]) -> Mapping[str, np.ndarray]:
        """Eight channels, the first a hundred times wider than the others."""
        peaks = np.array([100.0, *[1.0] * 7])
        sizes = {"a": (1, 72), "b": (1, 72), "c": (8, 9)}
        return {r.key: peaks if r.kind == "peak" else correlated(*sizes[r.reader]) for r in requests}

    def adjusted(self, overrides: Mapping[str, np.ndarray]) -> Scored:
        return self

    def error(self, plan: QuantizationPlan, *, pictures: int | None = None) -> PlanScore:
        self.plans.append(plan)
        return PlanScore(Fidelity(10, 100, self._lost(plan), 0.0), {"y": 30.0})

    def note(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.notes[title] = rows

    def conclude(self, reason: str) -> None:
        self.conclusions.append(reason)


def correlated(groups: int, inputs: int) -> np.ndarray:
    """A Gram matrix per group whose inputs move together, as neighbouring pixels do."""
    return np.broadcast_to(np.ones((inputs, inputs)) + 0.1 * np.eye(inputs), (groups, inputs, inputs))


def depthwise_in_int8(plan: QuantizationPlan) -> bool:
    return any(point.edge.node == "c" for point in plan.points)


def test_depthwise_stays_float_where_int8_is_measured_to_ruin_it() -> None:
    bench: Any = Scored(lambda plan: 0.6 if depthwise_in_int8(plan) else 0.01)
    plan = StaticQuantizer().plan(residual_block(), bench, StaticOptions())
    assert not depthwise_in_int8(plan)
    assert plan.precisions["c"].precision == "fp32"
    assert "in INT8 60.0 % of the boxes are lost, left float 1.0 %" in plan.precisions["c"].reason


def test_where_only_scores_suffer_the_reason_tells_the_scores() -> None:
    class Shifted(Scored):
        def error(self, plan: QuantizationPlan, *, pictures: int | None = None) -> PlanScore:
            shift = -0.03 if depthwise_in_int8(plan) else -0.001
            return PlanScore(Fidelity(10, 100, 0.0, shift), {"y": 30.0})

    plan = StaticQuantizer().plan(residual_block(), cast(Any, Shifted(lambda plan: 0.0)), StaticOptions())
    loss = "0.0 % of the boxes are lost and scores shift by"
    assert f"in INT8 {loss} -0.030, left float {loss} -0.001" in plan.precisions["c"].reason


def test_depthwise_runs_in_int8_where_that_costs_nothing() -> None:
    plan = StaticQuantizer().plan(residual_block(), cast(Any, Scored(lambda plan: 0.0)), StaticOptions())
    assert depthwise_in_int8(plan) and plan.precisions["c"].precision == "int8"


@pytest.mark.parametrize(("option", "int8"), [("int8", True), ("float", False)])
def test_the_user_may_decide_without_measuring(option: str, int8: bool) -> None:
    bench: Any = Scored(lambda plan: 0.0)
    options = StaticOptions(depthwise=option, calibrator="minmax", **AS_PLACED)
    plan = StaticQuantizer().plan(residual_block(), bench, options)
    assert depthwise_in_int8(plan) is int8 and len(bench.plans) == 1


def test_auto_keeps_the_ranges_that_measured_best() -> None:
    def lost(plan: QuantizationPlan) -> float:
        return float(plan.by_edge[Edge("x", "a", 0)].scale)  # the narrower the better

    bench: Any = Scored(lost)
    plan = StaticQuantizer().plan(residual_block(), bench, StaticOptions(depthwise="int8", **AS_PLACED))
    scales = {float(p.by_edge[Edge("x", "a", 0)].scale) for p in bench.plans}
    tried = bench.notes["static: plans tried"]
    assert len({row["calibrator"] for row in tried}) == 8  # entropy, mse, min-max and five percentiles
    assert {row["calibrator"] for row in tried} >= {"entropy", "mse", "minmax", "percentile 99.9999"}
    assert [row["kept"] for row in tried].count(True) == 1
    assert float(plan.by_edge[Edge("x", "a", 0)].scale) == min(scales)


@pytest.mark.parametrize(
    ("given", "tried"),
    [
        ({}, {*CALIBRATORS} - {"percentile"} | {f"percentile {p}" for p in ("99.9", "99.99", "99.995")}),
        ({"calibrator": "percentile"}, {"minmax", "percentile 99.9", "percentile 99.9999"}),
        ({"calibrator": "percentile", "percentile": 99.5}, {"percentile 99.5"}),
        ({"calibrator": "mse"}, {"mse"}),
    ],
)
def test_a_percentile_is_searched_unless_one_is_named(given: dict[str, Any], tried: Any) -> None:
    bench: Any = Scored(lambda plan: 0.0)
    StaticQuantizer().plan(residual_block(), bench, StaticOptions(**given, **AS_PLACED))
    calibrators = {row["calibrator"] for row in bench.notes["static: plans tried"]}
    assert tried <= calibrators and (len(tried) > 1 or tried == calibrators)


def test_what_helps_too_little_to_be_measured_is_not_kept_and_told() -> None:
    bench: Any = Scored(lambda plan: 0.01 - 0.001 * bool(plan.overrides))
    plan = StaticQuantizer().plan(residual_block(), bench, StaticOptions())
    rows = {row["option"]: row for row in bench.notes["static: effect of each option"]}
    assert not plan.overrides and set(rows) == {"equalize", "rounding", "bias_correction"}
    assert not any(row["kept"] for row in rows.values())
    assert rows["rounding"]["lost boxes %"] == "1.0 -> 0.9"
    assert "no bias" in rows["bias_correction"]["remark"]


def test_what_measurably_helps_is_kept() -> None:
    bench: Any = Scored(lambda plan: 0.02 - 0.01 * bool(plan.overrides))
    plan = StaticQuantizer().plan(residual_block(), bench, StaticOptions(equalize="off"))
    rows = {row["option"]: row for row in bench.notes["static: effect of each option"]}
    assert rows["rounding"]["kept"] and set(plan.overrides) == {"wa", "wb", "wc"}


def test_options_that_are_on_are_kept_though_measured_to_harm() -> None:
    bench: Any = Scored(lambda plan: 0.1 * bool(plan.overrides))
    options = StaticOptions(rounding="gram", equalize="off", bias_correction="off")
    plan = StaticQuantizer().plan(residual_block(), bench, options)
    (row,) = bench.notes["static: effect of each option"]
    assert plan.overrides and row["kept"] and row["lost boxes %"] == "0.0 -> 10.0"


def test_uneven_depthwise_convolutions_stay_float_and_are_named() -> None:
    bench: Any = Scored(lambda plan: 0.6 if depthwise_in_int8(plan) else 0.01)
    StaticQuantizer().plan(residual_block(), bench, StaticOptions(**AS_PLACED))
    (sentence,) = bench.conclusions
    assert "depthwise convolutions stay float" in sentence and "c (100x)" in sentence
    (row,) = bench.notes["static: channel ranges of depthwise convolutions"]
    assert row["depthwise convolution"] == "c" and row["levels left to the median channel"] == 2.6


def test_depthwise_convolutions_are_not_blamed_for_nothing() -> None:
    bench: Any = Scored(lambda plan: 0.0)
    StaticQuantizer().plan(residual_block(), bench, StaticOptions(**AS_PLACED))
    assert not bench.conclusions


def test_nothing_is_tried_where_nothing_is_lost() -> None:
    bench: Any = Scored(lambda plan: 0.0)
    StaticQuantizer().plan(residual_block(), bench, StaticOptions(calibrator="mse", depthwise="int8"))
    rows = bench.notes["static: effect of each option"]
    assert len(bench.plans) == 1 and all("not tried" in row["remark"] for row in rows)


def test_few_bits_are_of_weights_only() -> None:
    options = StaticOptions(bits=4, calibrator="mse", **AS_PLACED)
    plan = StaticQuantizer().plan(residual_block(), cast(Any, Scored(lambda plan: 0.0)), options)
    bits = {point.edge.tensor: point.bits for point in plan.points}
    assert (bits["wa"], bits["x"]) == (4, 8)
    assert "weights of 4 bits" in plan.precisions["a"].reason


def test_targets_with_signed_grids_get_signed_grids() -> None:
    bench: Any = Scored(lambda plan: 0.0)
    bench.symmetric_only = True
    assert StaticQuantizer().plan(residual_block(), bench, StaticOptions(calibrator="mse")).symmetric


def test_the_same_inputs_give_the_same_digest() -> None:
    plans = [
        StaticQuantizer().plan(residual_block(), cast(Any, Scored(lambda p: 0.0)), StaticOptions())
        for _ in "ab"
    ]
    assert plans[0].digest == plans[1].digest
