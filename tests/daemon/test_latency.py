"""Percentiles without keeping values, the deadline window, and the governor's decisions."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from avq.daemon.governor import GovernorState, Transition, govern
from avq.daemon.metrics import Histogram, Judgement, LatencyJudge, bucket, bucket_middle
from avq.types import LatencyBudget

nanoseconds = st.integers(0, 10**12)


def filled(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@given(nanoseconds)
def test_a_bucket_is_within_one_part_in_128(value: int) -> None:
    assert abs(bucket_middle(bucket(value)) - value) <= value / 128


@given(nanoseconds, nanoseconds)
def test_buckets_keep_the_order(a: int, b: int) -> None:
    assert (bucket(a) <= bucket(b)) == (a <= b) or bucket(a) == bucket(b)


@given(st.lists(nanoseconds, min_size=1, max_size=300), st.sampled_from([1, 25, 50, 95, 99, 100]))
def test_percentiles_are_those_of_the_values(values: list[int], percent: int) -> None:
    histogram = filled(values)
    exact = sorted(values)[max(1, math.ceil(len(values) * percent / 100)) - 1]
    assert abs(histogram.percentile_ns(percent) - exact) <= exact / 128
    assert (histogram.total, histogram.max_ns) == (len(values), max(values))


@given(st.lists(nanoseconds, max_size=100), st.lists(nanoseconds, max_size=100))
def test_merging_is_recording_both(a: list[int], b: list[int]) -> None:
    merged = filled(a)
    merged.merge(filled(b))
    assert merged == filled(a + b)


def test_an_empty_histogram_says_zero() -> None:
    assert Histogram().summary_ms() == {"p50_ms": 0.0, "p95_ms": 0.0, "p99_ms": 0.0, "max_ms": 0.0}


@given(st.lists(st.integers(0, 20), min_size=1, max_size=200), st.integers(1, 30))
def test_the_window_holds_the_last_frames_only(ages: list[int], window: int) -> None:
    judge = LatencyJudge(LatencyBudget(10, window))
    for index, age in enumerate(ages):
        seen = judge.judge(age)
        last = ages[max(0, index + 1 - window) : index + 1]
        assert (seen.late, seen.misses, seen.frames) == (age > 10, sum(a > 10 for a in last), len(last))
        assert seen.full == (len(last) == window)
    assert judge.misses == sum(age > 10 for age in ages)


def driven(ages_ms: list[int], budget: LatencyBudget) -> list[tuple[int, Transition]]:
    judge, state, changes = LatencyJudge(budget), GovernorState(), []
    for index, age in enumerate(ages_ms):
        state, change = govern(state, judge.judge(age * 1_000_000), budget)
        if change is not None:
            changes.append((index, change))
    return changes


def test_the_alert_comes_on_the_first_miss_too_many_and_goes_with_hysteresis() -> None:
    budget = LatencyBudget(deadline_ns=33_000_000, window_frames=30, max_miss_ratio=0.1)
    changes = driven([20] * 30 + [50] * 10 + [20] * 60, budget)
    assert [(index, change.kind) for index, change in changes] == [
        (33, "alert_raised"),  # the fourth miss: 3 of 30 are tolerated
        (68, "alert_cleared"),  # one miss left in the window: half of 3, rounded down
    ]
    assert "4 of the last 30 frames were older than 33 ms" in changes[0][1].reason


def test_misses_within_the_tolerated_share_raise_no_alert() -> None:
    budget = LatencyBudget(deadline_ns=33_000_000, window_frames=30, max_miss_ratio=0.1)
    assert driven(([50] * 3 + [20] * 27) * 5, budget) == []


@given(st.lists(st.booleans(), max_size=300))
def test_the_governor_alternates_and_repeats_itself(lates: list[bool]) -> None:
    budget = LatencyBudget(10, 10, 0.2)
    ages = [1 if late else 0 for late in lates]
    changes = driven([age * 100 for age in ages], LatencyBudget(10_000_000, 10, 0.2))
    kinds = [change.kind for _, change in changes]
    assert kinds == (["alert_raised", "alert_cleared"] * len(kinds))[: len(kinds)]
    assert changes == driven([age * 100 for age in ages], LatencyBudget(10_000_000, 10, 0.2))
    assert govern(GovernorState(), Judgement(False, 0, 1, False), budget) == (GovernorState(), None)
