"""Changes of a camera's state are reported, noise is counted: virtual hours of flapping and bursts."""

from __future__ import annotations

import random

import pytest

from avq.daemon import RestartPolicy
from avq.daemon.camera_reports import BURST_OUTAGES, LASTING_NS, SUMMARY_NS, CameraReports
from avq.daemon.supervisor import Action
from tests.daemon.test_supervisor import MS, Bench

HOUR_NS = 3600 * 10**9
LINES = {"camera_stalled", "camera_resumed", "camera_dead", "camera_unsteady", "camera_steady"}


class Reported(Bench):
    """A bench whose actions pass through the reports, as in the receiver."""

    def __init__(self, policy: RestartPolicy | None = None) -> None:
        super().__init__(policy)
        self.reports = CameraReports()

    def look(self) -> None:
        for order in self.supervisor.actions(self.now_ns, busy=lambda: self.busy):
            self.told += [(self.now_ns, passed) for passed in self.reports.take(order, self.now_ns)]
        self.told += [(self.now_ns, passed) for passed in self.reports.due(self.now_ns)]

    def lines(self) -> list[tuple[int, Action]]:
        return [(at, order) for at, order in self.told if order.kind in LINES]


def most_in_an_hour(times_ns: list[int]) -> int:
    return max((sum(at <= t < at + HOUR_NS for t in times_ns) for at in times_ns), default=0)


@pytest.mark.parametrize("burst", [2, 5, 10])
def test_a_camera_that_delivers_in_bunches_is_reported_a_few_times(burst: int) -> None:
    bench = Reported()
    bench.open(25.0)
    for _ in range(600 * 25 // burst):
        bench.until(bench.now_ns + burst * 40 * MS)
        for _ in range(burst):
            bench.supervisor.on_frame(bench.now_ns)
    bench.look()
    assert len(bench.lines()) <= 6 and bench.at("kill") == []
    assert bench.supervisor.condition == "delivering"


def test_jitter_is_reported_rarely() -> None:
    bench, chance = Reported(), random.Random(3)
    bench.open(25.0)
    for _ in range(10_000):
        bench.frames(1, int(chance.expovariate(1 / 40) * MS))
    assert len(bench.lines()) <= 20 and bench.at("kill") == []


def test_a_flapping_camera_writes_at_most_20_lines_an_hour_for_8_hours() -> None:
    bench, chance = Reported(), random.Random(5)
    bench.open(5.0)
    outages = 0
    while bench.now_ns < 8 * HOUR_NS:
        for _ in range(40):
            bench.now_ns += 200 * MS
            bench.supervisor.on_frame(bench.now_ns)
        bench.look()
        assert bench.supervisor.condition == "delivering"
        bench.die()
        outages += 1
        while bench.supervisor.state != "opening":
            assert bench.supervisor.condition in ("restarting", "dead")
            bench.until(bench.supervisor.due_ns)
        bench.now_ns += chance.randrange(200, 12_000) * MS
        bench.look()
        bench.open(5.0)
    times = [at for at, _ in bench.lines()]
    assert most_in_an_hour(times) <= 20
    assert outages > 1000
    counted = sum(order.counts.get("camera_stalled", 0) for _, order in bench.told)
    reported = len(bench.at("camera_stalled"))
    assert 0 <= outages - counted - reported <= outages // 30  # the last summary is not due yet


def test_single_outages_are_reported_whole() -> None:
    reports, told = CameraReports(), []
    for hour in range(24):
        now_ns = hour * HOUR_NS
        for kind, after_ns in (("camera_stalled", 0), ("camera_restarted", MS), ("camera_resumed", 10 * MS)):
            told += reports.take(Action(kind, "silent", "x"), now_ns + after_ns)  # type: ignore[arg-type]
        told += reports.due(now_ns + SUMMARY_NS)
    assert [action.kind for action in told] == ["camera_stalled", "camera_restarted", "camera_resumed"] * 24


def test_an_outage_that_lasts_is_reported_even_when_outages_are_counted() -> None:
    reports = CameraReports()
    for number in range(BURST_OUTAGES + 3):
        reports.take(Action("camera_stalled", "silent", "no frame"), number * MS)
        if number < BURST_OUTAGES + 2:
            reports.take(Action("camera_resumed", "silent", "again"), number * MS + 1)
    assert reports.due(LASTING_NS // 2) == []
    (report,) = reports.due(LASTING_NS + 10 * MS)
    assert report.kind == "camera_stalled" and "away for 60 s" in report.reason
    assert [a.kind for a in reports.take(Action("camera_resumed"), LASTING_NS * 2)] == ["camera_resumed"]


def test_the_summary_counts_and_the_end_of_unrest_is_reported() -> None:
    reports = CameraReports()
    for number in range(BURST_OUTAGES + 6):
        reports.take(Action("camera_stalled", "silent"), number * 10**9)
        reports.take(Action("camera_restarted", "silent"), number * 10**9)
        reports.take(Action("camera_resumed", "silent"), number * 10**9 + 5 * 10**8)
    (summary,) = reports.due(SUMMARY_NS + BURST_OUTAGES * 10**9)
    assert summary.counts == {"camera_stalled": 6, "camera_restarted": 6}
    assert "6 outages" in summary.reason and "it delivers now" in summary.reason
    (end,) = reports.due(2 * SUMMARY_NS + BURST_OUTAGES * 10**9)
    assert end.kind == "camera_steady"
    assert reports.due(9 * SUMMARY_NS) == []
