"""The gate's decisions, with the reasons a person reads."""

from __future__ import annotations

from dataclasses import replace

import pytest

from avq.builder.gate import Limits, Measured, judge
from avq.types import Accuracy, Fidelity, Latency

GOOD = Fidelity(images=20, boxes=200, lost=0.005, confidence_shift=0.001)
FAST = Latency(5.0, 6.0, 0.7, 0.68, 0.72, "openvino float bf16")
BASE = Measured(float_accuracy=None, accuracy=None, fidelity=GOOD, sqnr_db=30.0, latency=FAST)


def accuracy(value: float) -> Accuracy:
    return Accuracy(map=value, ap50=value, per_class={}, images=10)


def test_a_faithful_and_fast_engine_passes():
    verdict = judge(BASE, Limits())
    assert verdict.accepted and "lost boxes 0.50 % of 200" in verdict.metric


@pytest.mark.parametrize(
    "fidelity",
    [replace(GOOD, lost=0.011), replace(GOOD, confidence_shift=-0.03), replace(GOOD, boxes=0, lost=0.0)],
)
def test_lost_boxes_shifted_scores_or_nothing_to_compare_refuse(fidelity):
    verdict = judge(replace(BASE, fidelity=fidelity), Limits())
    assert not verdict.accepted and any("mixed" in fix for fix in verdict.fixes)


def test_labels_outrank_boxes():
    worse = replace(BASE, float_accuracy=accuracy(0.5), accuracy=accuracy(0.48))
    assert not judge(worse, Limits()).accepted
    assert judge(worse, Limits(max_drop_percent=5.0)).accepted


def test_slower_only_when_the_interval_says_so():
    unsure = replace(FAST, ratio=1.05, ratio_low=1.01, ratio_high=1.09)
    sure = replace(unsure, ratio_low=1.03)
    assert judge(replace(BASE, latency=unsure), Limits()).accepted
    verdict = judge(replace(BASE, latency=sure), Limits())
    assert not verdict.accepted and any("slower than float" in r for r in verdict.reasons)


def test_a_float_bundle_cannot_be_slower_than_itself():
    assert judge(replace(BASE, latency=replace(FAST, ratio_low=1.5), is_float=True), Limits()).accepted


def test_the_budget_is_judged_on_p50():
    assert judge(BASE, Limits(budget_ms=5.0)).accepted
    assert not judge(BASE, Limits(budget_ms=4.9)).accepted


def test_without_boxes_the_noise_of_the_outputs_decides():
    silent = replace(BASE, fidelity=None)
    assert judge(silent, Limits()).accepted
    assert not judge(replace(silent, sqnr_db=12.0), Limits()).accepted
    assert not judge(replace(silent, sqnr_db=None), Limits()).accepted
