"""Paired times: the true ratio is inside the interval, drift or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avq.clock import ReplayClock
from avq.errors import RequestError
from avq.measure.latency import LatencySamples, paired_latency, ratio_interval, summary


def _pair(seed: int, ratio: float, rounds: int = 80) -> tuple[LatencySamples, LatencySamples]:
    """Two engines on a drifting, spiky machine; ``ratio`` is the true one of their medians."""
    rng = np.random.default_rng(seed)
    machine = 8e6 * np.exp(np.cumsum(rng.normal(0, 0.03, rounds)))

    def times(factor: float) -> LatencySamples:
        spikes = np.where(rng.random(rounds) < 0.03, 3.0, 1.0)
        own = np.exp(rng.normal(0, 0.04, rounds))
        return LatencySamples((machine * factor * own * spikes).astype(np.int64))

    return times(ratio), times(1.0)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.3])
def test_the_interval_covers_the_true_ratio(ratio: float) -> None:
    inside = 0
    for seed in range(200):
        middle, low, high = ratio_interval(*_pair(seed, ratio))
        assert low <= middle <= high
        inside += low <= ratio <= high
    assert inside >= 180  # 95 % of 200 is 190; three standard deviations less is 181


def test_a_slow_first_half_does_not_move_the_ratio() -> None:
    rng = np.random.default_rng(3)
    drift = np.where(np.arange(60) < 30, 4.0, 1.0)
    one = LatencySamples((1e6 * drift * 1.1 * np.exp(rng.normal(0, 0.01, 60))).astype(np.int64))
    other = LatencySamples((1e6 * drift * np.exp(rng.normal(0, 0.01, 60))).astype(np.int64))
    _, low, high = ratio_interval(one, other)
    assert 1.08 < low < 1.1 < high < 1.12


@settings(max_examples=50, deadline=None)
@given(
    ns=st.lists(st.integers(1_000, 10**9), min_size=2, max_size=40),
    factor=st.integers(1, 20),
)
def test_a_constant_factor_is_found_exactly(ns: Any, factor: Any) -> None:
    base = np.array(ns, np.int64)
    middle, low, high = ratio_interval(LatencySamples(base * factor), LatencySamples(base))
    assert middle == pytest.approx(factor)
    assert low == pytest.approx(factor)
    assert high == pytest.approx(factor)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000))
def test_swapping_the_two_inverts_the_ratio(seed: Any) -> None:
    one, other = _pair(seed, 1.2)
    forward, backward = ratio_interval(one, other), ratio_interval(other, one)
    assert forward[0] == pytest.approx(1 / backward[0])
    assert forward[1] == pytest.approx(1 / backward[2], rel=0.02)


def test_the_same_samples_give_the_same_interval() -> None:
    assert ratio_interval(*_pair(1, 1.1)) == ratio_interval(*_pair(1, 1.1))


def test_every_round_runs_all_and_no_one_is_always_first() -> None:
    clock, order = ReplayClock(), []

    def run(name: str, cost_ns: int) -> Any:
        def once() -> None:
            order.append(name)
            clock.advance_by(cost_ns)

        return once

    runs = {"a": run("a", 5_000_000), "b": run("b", 10_000_000), "c": run("c", 20_000_000)}
    samples = paired_latency(runs, rounds=12, warmup=2, clock=clock)
    timed = order[6:]
    rounds = [timed[i : i + 3] for i in range(0, 36, 3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert {r[0] for r in rounds} == {r[2] for r in rounds} == {"a", "b", "c"}
    assert samples["b"].p50_ms == samples["b"].p99_ms == 10.0
    assert ratio_interval(samples["c"], samples["a"]) == pytest.approx((4.0, 4.0, 4.0))
    rows = summary(samples, "b")
    assert [row["ratio"] for row in rows] == pytest.approx([0.5, 1.0, 2.0])


def test_what_was_not_timed_together_is_not_compared() -> None:
    with pytest.raises(RequestError, match="not from the same rounds"):
        ratio_interval(LatencySamples(np.ones(3, np.int64)), LatencySamples(np.ones(4, np.int64)))
    with pytest.raises(RequestError, match="nothing to time"):
        paired_latency({}, rounds=3)
