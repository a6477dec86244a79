"""The ladder against an oracle, on generated traces: few seeds here, a thousand in tests/bench/bench_governor.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avq.daemon.governor import Deadline, LadderState, Observation, Rung, climb
from tests.daemon.governor_sim import PERIOD_NS, generate, judged, serve

MS = 1_000_000
LADDER = (Rung("best", 20 * MS), Rung("smaller", 10 * MS), Rung("every second", 10 * MS, stride=2))
DEADLINE = Deadline(50 * MS, PERIOD_NS)


def driven(services_ms: list[float], ladder: tuple[Rung, ...] = LADDER) -> list[tuple[int, int, str]]:
    """(frame, rung after it, reason) of every switch, for service times in units of the rung's cost."""
    state, switches = LadderState(), []
    for frame, load in enumerate(services_ms):
        service_ns = int(load * ladder[state.rung].cost_ns)
        before = state.rung
        state, why = climb(state, Observation(frame * PERIOD_NS, service_ns, 0), ladder, DEADLINE)
        assert (why != "") == (state.rung != before), "every switch has a reason, nothing else has one"
        if why:
            switches.append((frame, state.rung, why))
    return switches


@pytest.mark.slow
def test_fifty_traces_against_the_oracle() -> None:
    total = judged(range(50))
    assert total.cost <= 1.10 * total.oracle_cost
    assert total.slowest_detection_frames <= 3
    assert total.opposite_switches == 0
    assert total.in_budget_share >= 0.95


def test_it_falls_on_the_third_frame_straight_to_what_holds_and_rises_when_the_load_is_gone() -> None:
    # 'smaller' would take 40 ms too, but its frames would wait for each other: only the stride keeps 50 ms.
    switches = driven([1.0] * 50 + [4.0] * 100 + [1.0] * 50)
    assert [(frame, rung) for frame, rung, _ in switches] == [(52, 2), (157, 0)]
    assert (
        "3 frames in a row took 80.0 ms" in switches[0][2]
        and "'every second' will take 40.0 ms" in switches[0][2]
    )


def test_one_slow_frame_changes_nothing() -> None:
    assert driven(([1.0] * 40 + [9.0]) * 10) == []


def test_a_ladder_of_one_rung_never_switches() -> None:
    assert driven([9.0] * 100, ladder=LADDER[:1]) == []


def test_frames_that_waited_for_the_rung_before_do_not_count() -> None:
    state = replace(LadderState(), rung=1, switched_ns=10**9)
    late = Observation(10**9 - 1, 400 * MS, 300 * MS)
    assert climb(state, late, LADDER, DEADLINE)[0].rung == 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0.01, 50), max_size=200))
def test_any_loads_keep_it_on_the_ladder_and_repeat_exactly(loads: list[float]) -> None:
    once, twice = driven(loads), driven(loads)
    assert once == twice
    assert all(0 <= rung < len(LADDER) for _, rung, _ in once)


@pytest.mark.slow
def test_the_generator_gives_what_it_says() -> None:
    for seed in range(30):
        trace = generate(seed)
        assert all(frames >= 120 for frames, _ in trace.segments)
        assert len(trace.loads) == sum(frames for frames, _ in trace.segments)
        assert len(serve(trace)) <= len(trace.loads)
