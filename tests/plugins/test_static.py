"""What ``static`` decides, and why it says so: measured choices on a graph with one depthwise convolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from avq_static import StaticOptions, StaticQuantizer

from avq.build.calibrate.histogram import Histogram
from avq.build.calibrate.stats import HistogramStats
from avq.types import Edge, Fidelity, PlanScore, QuantizationPlan, StatRequest
from tests.toolbox.graphs import residual_block


class Scored:
    """A workbench over real histograms whose error is a rule of the test."""

    symmetric_only = False
    keep_float: Mapping[str, str] = {}

    def __init__(self, lost) -> None:
        self._lost = lost
        self.asked: list[QuantizationPlan] = []
        self.notes: list[Sequence[Mapping[str, object]]] = []

    def collect(self, requests: Sequence[StatRequest]) -> HistogramStats:
        rng = np.random.default_rng(0)
        histograms = {}
        for request in requests:
            histograms[request.tensor] = Histogram()
            histograms[request.tensor].add(rng.laplace(size=20_000).astype(np.float32))
        return HistogramStats(histograms)

    def error(self, plan: QuantizationPlan) -> PlanScore:
        self.asked.append(plan)
        return PlanScore(Fidelity(10, 100, self._lost(plan), 0.0), {"y": 30.0})

    def note(self, title: str, rows: Sequence[Mapping[str, object]]) -> None:
        self.notes.append(rows)


def depthwise_in_int8(plan: QuantizationPlan) -> bool:
    return any(point.edge.node == "c" for point in plan.points)


def test_depthwise_stays_float_where_int8_is_measured_to_ruin_it():
    bench = Scored(lambda plan: 0.6 if depthwise_in_int8(plan) else 0.01)
    plan = StaticQuantizer().plan(residual_block(), bench, StaticOptions())
    assert not depthwise_in_int8(plan)
    assert plan.precisions["c"].precision == "fp32"
    assert "in INT8 60.0 % of the boxes are lost, left float 1.0 %" in plan.precisions["c"].reason


def test_depthwise_runs_in_int8_where_that_costs_nothing():
    plan = StaticQuantizer().plan(residual_block(), Scored(lambda plan: 0.0), StaticOptions())
    assert depthwise_in_int8(plan) and plan.precisions["c"].precision == "int8"


@pytest.mark.parametrize(("option", "int8"), [("int8", True), ("float", False)])
def test_the_user_may_decide_without_measuring(option, int8):
    bench = Scored(lambda plan: 0.0)
    options = StaticOptions(depthwise=option, calibrator="minmax")
    plan = StaticQuantizer().plan(residual_block(), bench, options)
    assert depthwise_in_int8(plan) is int8 and len(bench.asked) == 1


def test_auto_keeps_the_calibrator_that_measured_best():
    widths: dict[str, float] = {}

    def lost(plan: QuantizationPlan) -> float:
        width = float(plan.by_edge[Edge("x", "a", 0)].scale)
        widths.setdefault(plan.digest, width)
        return abs(width - sorted({*widths.values()})[0])  # the narrowest range so far is the best

    bench = Scored(lost)
    plan = StaticQuantizer().plan(residual_block(), bench, StaticOptions(depthwise="int8"))
    assert len(widths) == 4 and len(bench.notes[0]) == 4
    assert [row["kept"] for row in bench.notes[0]].count(True) == 1
    assert float(plan.by_edge[Edge("x", "a", 0)].scale) == min(widths.values())


def test_targets_with_signed_grids_get_signed_grids():
    bench = Scored(lambda plan: 0.0)
    bench.symmetric_only = True
    assert StaticQuantizer().plan(residual_block(), bench, StaticOptions(calibrator="mse")).symmetric


def test_the_same_inputs_give_the_same_digest():
    plans = [StaticQuantizer().plan(residual_block(), Scored(lambda p: 0.0), StaticOptions()) for _ in "ab"]
    assert plans[0].digest == plans[1].digest
