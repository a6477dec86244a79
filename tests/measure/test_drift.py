"""Drift: what is usual stays quiet at the promised rate, what is not is told, and a reference survives its file."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avq.errors import BundleError, DataError
from avq.measure.drift import FALSE_ALARM_RATE, DriftMonitor, DriftReference, fit_reference, judge_drift

NAMES = tuple(f"occupancy/t{i}" for i in range(12))


def usual(seed: int, count: int, moved: float = 0.0) -> list[dict[str, float]]:
    """Ratios of pictures: a common brightness and noise of their own; ``moved`` shifts one tensor."""
    rng = np.random.default_rng(seed)
    common = rng.normal(0, 0.02, (count, 1))
    values = 0.2 + common + rng.normal(0, 0.02, (count, len(NAMES)))
    values[:, 3] += moved
    return [dict(zip(NAMES, row, strict=True)) for row in np.clip(values, 0, 1).tolist()]


def test_usual_sets_stay_quiet_and_moved_ones_are_told() -> None:
    reference = fit_reference(usual(0, 80))
    assert sum(judge_drift(reference, usual(seed, 40)).drifting for seed in range(1, 101)) == 0
    verdict = judge_drift(reference, usual(500, 40, moved=-0.12))
    assert verdict.drifting and verdict.chance < FALSE_ALARM_RATE
    worst = verdict.unusual(1)[0]
    assert worst["ratio"] == NAMES[3] and worst["deviation"] < -2 and worst["here"] < worst["usual_low"]


@given(st.integers(10, 200), st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_the_alarm_rate_is_the_exact_one_of_ranks(pictures: int, window: int) -> None:
    """Among n + W exchangeable scores every ranking is as likely: count directly, with rank sums."""
    reference = with_scores(pictures)
    tails = [reference.chance(c, window) for c in range(window + 1)]
    above = reference.pictures - reference.rank  # reference scores above the threshold
    direct = [
        math.comb(c + above, c) * math.comb(window - c + reference.rank - 1, window - c)
        / math.comb(window + pictures, window)
        for c in range(window + 1)
    ]  # fmt: skip
    assert tails == pytest.approx([math.fsum(direct[c:]) for c in range(window + 1)], abs=1e-9)
    limit = reference.limit(window)
    assert limit is None or tails[limit] <= FALSE_ALARM_RATE < tails[limit - 1]


def with_scores(pictures: int) -> DriftReference:
    one = np.ones(1)
    return DriftReference(("t",), one, one, one, one, one, np.arange(pictures, dtype=np.float64))


def test_two_pictures_prove_nothing() -> None:
    verdict = judge_drift(fit_reference(usual(0, 40)), usual(1, 2, moved=0.5))
    assert verdict.beyond == 2 and verdict.limit is None and not verdict.drifting


def test_the_monitor_alarms_within_a_window_and_calms_after_a_usual_one() -> None:
    monitor = DriftMonitor(fit_reference(usual(0, 80)), window=20)
    assert not any(monitor.update(row).drifting for row in usual(1, 60))
    states = [monitor.update(row) for row in usual(2, 20, moved=0.15)]
    first = next(i for i, state in enumerate(states) if state.drifting)
    assert states[first].beyond_count == states[first].limit and states[-1].drifting
    assert NAMES[3] in states[-1].unusual
    after = [monitor.update(row).drifting for row in usual(3, 20)]
    assert after[0] and not after[-1]


def test_shares_are_means_of_their_own_outputs_in_monitor_and_set() -> None:
    """Saturation alone is the share; eval's set and the daemon's window agree."""
    rng = np.random.default_rng(4)
    rows = [
        {f"saturation/t{i}": float(rng.random() * 1e-4) for i in range(5)}
        | {f"occupancy/t{i}": float(0.1 + rng.random() * 0.1) for i in range(5)}
        for _ in range(30)
    ]
    share = np.mean([[row[f"saturation/t{i}"] for i in range(5)] for row in rows])
    inner = np.mean([[row[f"occupancy/t{i}"] for i in range(5)] for row in rows])
    reference = fit_reference(rows)
    verdict, monitor = judge_drift(reference, rows), DriftMonitor(reference, window=30)
    state = [monitor.update(row) for row in rows][-1]
    for source in (verdict, state):
        assert source.share == pytest.approx(share, abs=1e-12)
        assert source.occupancy == pytest.approx(inner, abs=1e-12)
    assert reference.usual_share == pytest.approx(share, abs=1e-12)
    assert reference.usual_occupancy == pytest.approx(inner, abs=1e-12)
    again = monitor.update(rows[0])
    assert again.seen == 1 and again.share == pytest.approx(verdict.shares[0])


def test_a_number_that_is_none_is_unusual() -> None:
    reference = fit_reference(usual(0, 40))
    broken = {**usual(1, 1)[0], NAMES[0]: math.nan}
    assert reference.score(broken) == math.inf


def test_a_reference_comes_back_from_its_file() -> None:
    reference = fit_reference(usual(0, 40))
    again = DriftReference.from_json(reference.to_json())
    assert again.names == reference.names and again.rank == reference.rank
    assert again.threshold == pytest.approx(reference.threshold, rel=1e-5)
    row = usual(1, 1)[0]
    assert again.score(row) == pytest.approx(reference.score(row), rel=1e-3)


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"format":2}', b"\xff"])
def test_a_damaged_file_is_refused(damage: bytes) -> None:
    with pytest.raises(BundleError, match=r"drift\.json"):
        DriftReference.from_json(damage)


def test_a_reference_needs_pictures() -> None:
    with pytest.raises(DataError, match="too few pictures"):
        fit_reference(usual(0, 9))
    with pytest.raises(DataError, match="too short"):
        DriftMonitor(fit_reference(usual(0, 20)), window=1)
