"""The gate's decisions, with the reasons a person reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from avq.builder.gate import CANNOT_TELL, GIVE_PICTURES, Evidence, Limits, Measured, judge
from avq.builder.lift import Parity
from avq.types import Accuracy, Fidelity, Finding, Latency

GOOD = Fidelity(images=40, boxes=400, lost=0.005, confidence_shift=0.001)
FAST = Latency(5.0, 6.0, 0.7, 0.68, 0.72, "openvino float bf16")
BASE = Measured(float_accuracy=None, accuracy=None, fidelity=GOOD, sqnr_db=30.0, latency=FAST)


def accuracy(value: float) -> Accuracy:
    return Accuracy(map=value, ap50=value, per_class={}, images=10)


def test_a_faithful_and_fast_engine_passes() -> None:
    verdict = judge(Evidence(BASE), Limits())
    assert verdict.accepted == "yes" and "lost boxes 0.50 % of 400" in verdict.metric


@pytest.mark.parametrize(
    "fidelity",
    [replace(GOOD, lost=0.011), replace(GOOD, confidence_shift=-0.03), replace(GOOD, boxes=0, lost=0.0)],
)
def test_lost_boxes_shifted_scores_or_nothing_to_compare_refuse(fidelity: Any) -> None:
    verdict = judge(Evidence(replace(BASE, fidelity=fidelity)), Limits())
    assert verdict.accepted == "no" and any("mixed" in fix for fix in verdict.fixes)


def test_labels_outrank_boxes() -> None:
    worse = replace(BASE, float_accuracy=accuracy(0.5), accuracy=accuracy(0.48))
    assert judge(Evidence(worse), Limits()).accepted == "no"
    assert judge(Evidence(worse), Limits(max_drop_percent=5.0)).accepted == "yes"


def test_slower_only_when_the_interval_says_so() -> None:
    unsure = replace(FAST, ratio=1.05, ratio_low=1.01, ratio_high=1.09)
    sure = replace(unsure, ratio_low=1.03)
    doubtful = judge(Evidence(replace(BASE, latency=unsure)), Limits())
    assert (doubtful.accepted, doubtful.time) == ("no", "cannot tell")
    assert any("too busy" in reason for reason in doubtful.reasons)
    verdict = judge(Evidence(replace(BASE, latency=sure)), Limits())
    assert verdict.accepted == "no" and any("slower than float" in r for r in verdict.reasons)


def test_a_float_bundle_cannot_be_slower_than_itself() -> None:
    assert (
        judge(Evidence(replace(BASE, latency=replace(FAST, ratio_low=1.5), is_float=True)), Limits()).accepted
        == "yes"
    )


def test_the_budget_is_judged_on_p50() -> None:
    assert judge(Evidence(BASE), Limits(budget_ms=5.0)).accepted == "yes"
    assert judge(Evidence(BASE), Limits(budget_ms=4.9)).accepted == "no"


def test_without_boxes_the_noise_of_the_outputs_decides() -> None:
    silent = replace(BASE, fidelity=None)
    assert judge(Evidence(silent), Limits()).accepted == "yes"
    assert judge(Evidence(replace(silent, sqnr_db=12.0)), Limits()).accepted == "no"
    assert judge(Evidence(replace(silent, sqnr_db=None)), Limits()).accepted == "no"


EQUAL, DIFFERENT = Parity(True, True, "import proven"), Parity(False, False, "import differs")


def test_an_import_that_differs_from_its_source_is_refused_whatever_its_boxes() -> None:
    assert judge(Evidence(BASE, EQUAL), Limits()).accepted == "yes"
    verdict = judge(Evidence(BASE, DIFFERENT), Limits())
    assert verdict.accepted == "no" and verdict.reasons[-1] == "import differs" and verdict.fixes == ()


def test_without_boxes_parity_decides_before_noise() -> None:
    noisy = replace(BASE, fidelity=None, sqnr_db=3.0)
    assert judge(Evidence(noisy, EQUAL), Limits()).accepted == "yes"
    assert judge(Evidence(noisy, DIFFERENT), Limits()).accepted == "no"
    assert judge(Evidence(noisy), Limits()).accepted == "no"


def test_one_error_among_the_findings_refuses_and_every_finding_is_a_reason() -> None:
    warning = Finding("warning", "W1", "small scales", "3 nodes", "raise them")
    error = Finding("error", "E1", "no kernel")
    warned = judge(Evidence(BASE, findings=(warning,), conclusions=("chosen by hand",)), Limits())
    assert warned.accepted == "yes" and warned.fixes == ("raise them",)
    assert warned.reasons[-2:] == ("chosen by hand", "warning W1: small scales (3 nodes)")
    refused = judge(Evidence(BASE, findings=(warning, error)), Limits())
    assert refused.accepted == "no" and refused.reasons[-1] == "error E1: no kernel"


def test_a_target_that_is_not_here_leaves_the_verdict_pending_unless_a_check_failed() -> None:
    untimed = replace(BASE, latency=None)
    pending = judge(Evidence(untimed, pending_target=True), Limits())
    assert pending.accepted == "pending" and pending.passed
    lost = judge(Evidence(replace(untimed, fidelity=replace(GOOD, lost=0.5)), pending_target=True), Limits())
    assert lost.accepted == "no" and not lost.passed


@pytest.mark.parametrize("pending", [False, True])
def test_parity_does_not_cover_an_import_that_options_changed(pending: bool) -> None:
    unseen = replace(BASE, fidelity=None, sqnr_db=60.0)
    changed = Evidence(unseen, EQUAL, import_changed=True, has_pictures=False, pending_target=pending)
    verdict = judge(changed, Limits())
    assert (verdict.accepted, verdict.metric) == ("no", CANNOT_TELL)
    assert verdict.fixes[0] == GIVE_PICTURES and "--data DIR" in GIVE_PICTURES
    assert judge(replace(changed, parity=None), Limits()).metric == CANNOT_TELL
    assert judge(replace(changed, import_changed=False), Limits()).passed


def test_an_import_that_options_changed_is_judged_on_pictures() -> None:
    changed = Evidence(replace(BASE, fidelity=None), EQUAL, import_changed=True)
    assert judge(changed, Limits()).accepted == "yes"
    assert (
        judge(replace(changed, measured=replace(BASE, fidelity=None, sqnr_db=12.0)), Limits()).accepted
        == "no"
    )
    assert judge(replace(changed, measured=BASE), Limits()).accepted == "yes"
