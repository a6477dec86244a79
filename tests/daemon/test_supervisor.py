"""The supervisor on a virtual clock: stalls are told in time, jitter is left alone, restarts are bounded."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from avq.daemon import RestartPolicy
from avq.daemon.supervisor import Action, Supervisor

MS = 1_000_000


class Bench:
    """A supervisor, its virtual clock, and the receiver's habit of asking whenever it is due."""

    def __init__(self, policy: RestartPolicy | None = None) -> None:
        self.now_ns = 0
        self.told: list[tuple[int, Action]] = []
        self.busy = False
        self.supervisor = Supervisor(
            policy or RestartPolicy(), open_timeout_ns=5000 * MS, read_timeout_ns=2000 * MS, now_ns=0
        )

    def until(self, at_ns: int) -> None:
        """Look at every moment that is due, then at ``at_ns``."""
        while self.now_ns < at_ns:
            self.now_ns = max(self.now_ns + 1, min(at_ns, self.supervisor.due_ns))
            self.look()

    def look(self) -> None:
        orders = self.supervisor.actions(self.now_ns, busy=lambda: self.busy)
        self.told += [(self.now_ns, order) for order in orders]

    def open(self, fps: float = 25.0) -> None:
        self.supervisor.on_open(live=True, fps=fps, now_ns=self.now_ns)

    def frames(self, count: int, period_ns: int) -> None:
        for _ in range(count):
            self.until(self.now_ns + period_ns)
            self.supervisor.on_frame(self.now_ns)
        self.look()

    def die(self) -> None:
        self.supervisor.on_exit("failed", "refused", self.now_ns, again=True)
        self.look()

    def at(self, kind: str) -> list[int]:
        return [at for at, order in self.told if order.kind == kind]


@given(period_ms=st.integers(17, 1000), count=st.integers(8, 80), declared=st.sampled_from([0.0, 25.0, 30.0]))
@settings(max_examples=60, deadline=None)
def test_a_stall_is_told_within_three_of_the_periods_that_were_seen(
    period_ms: int, count: int, declared: float
) -> None:
    bench = Bench()
    bench.open(declared)
    bench.frames(count, period_ms * MS)
    last_ns = bench.now_ns
    bench.told.clear()
    bench.until(last_ns + 20_000 * MS)
    (told_ns,) = bench.at("camera_stalled")
    (killed_ns,) = bench.at("kill")
    assert told_ns - last_ns <= 3 * period_ms * MS
    assert 0 < killed_ns - told_ns <= max(1000 * MS, 4 * period_ms * MS)


@given(st.lists(st.integers(0, 450), min_size=30, max_size=300))
@settings(max_examples=60, deadline=None)
def test_jitter_is_never_answered_by_a_restart(gaps_ms: list[int]) -> None:
    bench = Bench()
    bench.open()
    for gap_ms in gaps_ms:
        bench.frames(1, gap_ms * MS)
    assert bench.at("kill") == []
    stalled, resumed = bench.at("camera_stalled"), bench.at("camera_resumed")
    assert len(stalled) == len(resumed) and all(s <= r for s, r in zip(stalled, resumed, strict=True))


@given(period_ms=st.integers(17, 1900), declared=st.sampled_from([0.0, 25.0, 60.0]))
@settings(max_examples=40, deadline=None)
def test_a_camera_that_is_slower_than_it_says_is_not_replaced(period_ms: int, declared: float) -> None:
    bench = Bench()
    bench.open(declared)
    bench.frames(20, period_ms * MS)
    assert bench.at("kill") == []


@given(count=st.integers(2, 8), declared=st.sampled_from([25.0, 30.0]))
def test_a_camera_that_stalls_after_a_few_frames_is_replaced_within_a_second(
    count: int, declared: float
) -> None:
    bench = Bench()
    bench.open(declared)
    bench.frames(count, int(1e9 / declared))
    last_ns = bench.now_ns
    bench.until(last_ns + 5000 * MS)
    assert bench.at("camera_stalled")[0] - last_ns <= 3e9 / declared
    assert bench.at("kill")[0] - bench.at("camera_stalled")[0] <= 1000 * MS


def test_frames_in_bursts_are_no_stall() -> None:
    bench = Bench()
    bench.open(30.0)
    for _ in range(20):
        bench.until(bench.now_ns + 330 * MS)
        for _ in range(10):
            bench.supervisor.on_frame(bench.now_ns)
    assert bench.at("kill") == []


def test_a_machine_that_slept_ends_no_capture_process() -> None:
    bench = Bench()
    bench.open()
    bench.frames(50, 33 * MS)
    bench.now_ns += 3_600_000 * MS  # nobody looked for an hour
    bench.look()
    assert bench.at("kill") == []
    bench.frames(50, 33 * MS)
    assert bench.at("kill") == []


def test_a_process_that_waits_for_a_processor_gets_the_read_time_out() -> None:
    bench = Bench()
    bench.open()
    bench.frames(50, 33 * MS)
    last_ns, bench.busy = bench.now_ns, True
    bench.until(last_ns + 1900 * MS)
    assert bench.at("kill") == [] and len(bench.at("camera_stalled")) == 1
    bench.until(last_ns + 2200 * MS)
    assert len(bench.at("kill")) == 1


def test_an_open_that_hangs_is_told_and_ended() -> None:
    bench = Bench()
    bench.until(60_000 * MS)
    assert bench.at("camera_stalled") == [2000 * MS]
    assert bench.at("kill") == [15_000 * MS]


@given(max_restarts=st.integers(1, 6), window_s=st.sampled_from([1.0, 10.0, 60.0]))
@settings(max_examples=30, deadline=None)
def test_no_window_ever_holds_more_restarts_than_allowed(max_restarts: int, window_s: float) -> None:
    bench = Bench(RestartPolicy(True, max_restarts, window_s))
    bench.die()
    while bench.now_ns < 300_000 * MS:
        bench.until(bench.supervisor.due_ns)
        if bench.supervisor.state == "opening":
            bench.die()
    starts = bench.at("start")
    assert len(starts) >= 2 * max_restarts
    window_ns = int(window_s * 1e9)
    for first, last in zip(starts, starts[max_restarts:], strict=False):
        assert last - first >= window_ns
    assert len(bench.at("camera_stalled")) == 1  # one outage, told once
    assert len(bench.at("camera_dead")) <= 1 and bench.supervisor.away


def test_waits_double_and_a_camera_that_came_back_starts_afresh() -> None:
    bench = Bench(RestartPolicy(True, 100, 60.0))
    bench.die()
    for _ in range(6):
        if bench.supervisor.state == "waiting":
            bench.until(bench.supervisor.due_ns)
        bench.die()
    waits_ms = [(b - a) // MS for a, b in itertools.pairwise(bench.at("start"))]
    assert waits_ms == [250, 500, 1000, 2000, 4000]
    bench.until(bench.supervisor.due_ns)
    bench.open()
    bench.frames(40, 33 * MS)
    assert len(bench.at("camera_resumed")) == 1 and not bench.supervisor.away
    died_ns = bench.now_ns
    bench.die()
    assert bench.at("start")[-1] == died_ns


def test_without_reconnect_the_first_failure_is_the_end() -> None:
    bench = Bench(RestartPolicy(reconnect=False))
    bench.open()
    bench.frames(5, 33 * MS)
    bench.die()
    assert bench.supervisor.state == "ended" and bench.at("start") == []
