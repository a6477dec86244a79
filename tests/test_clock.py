"""Two clocks: frames keep monotonic time, Unix time follows the wall clock, and a step is found once."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from avq.clock import ClockWatch, UnixClock

S = 10**9
YEARS_7 = 7 * 365 * 86400 * S


@dataclass
class Machine:
    """Clocks that a test sets."""

    wall_ns: int = 1_790_000_000 * S
    monotonic_ns: int = 5 * S
    boot_ns: int = 5 * S

    def clock(self) -> UnixClock:
        return UnixClock(lambda: self.wall_ns, lambda: self.monotonic_ns, lambda: self.boot_ns)

    def passes(self, seconds: float) -> None:
        for name in ("wall_ns", "monotonic_ns", "boot_ns"):
            setattr(self, name, getattr(self, name) + int(seconds * S))


@pytest.mark.parametrize("step_ns", [-YEARS_7, YEARS_7, -S, S, 200_000_000])
def test_after_a_step_every_stamp_is_right(step_ns: int) -> None:
    machine = Machine()
    clock, watch = machine.clock(), ClockWatch(machine.clock())
    captured_ns = machine.monotonic_ns
    assert captured_ns + clock.offset_ns() == machine.wall_ns
    machine.passes(1)
    assert watch.look() is None
    machine.wall_ns += step_ns
    machine.passes(0.2)
    assert machine.monotonic_ns + clock.offset_ns() == machine.wall_ns
    step = watch.look()
    assert step is not None and (step.step_ns, step.suspended_ns) == (step_ns, 0)
    assert ("back" if step_ns < 0 else "forward") in step.reason
    machine.passes(10)
    assert watch.look() is None


def test_a_night_of_suspend_is_no_setting_of_the_clock() -> None:
    machine = Machine()
    clock, watch = machine.clock(), ClockWatch(machine.clock())
    machine.wall_ns += 8 * 3600 * S
    machine.boot_ns += 8 * 3600 * S
    machine.passes(0.2)
    assert machine.monotonic_ns + clock.offset_ns() == machine.wall_ns
    step = watch.look()
    assert step is not None and step.suspended_ns == 8 * 3600 * S
    assert step.reason == "the machine was suspended for 28800.0 s"


def test_jitter_of_reading_moves_nothing() -> None:
    machine = Machine()
    clock, watch = machine.clock(), ClockWatch(machine.clock())
    before_ns = clock.offset_ns()
    for _ in range(20):
        machine.passes(0.2)
        machine.wall_ns += 200_000  # 0.2 ms
        offset_ns = clock.offset_ns()
        machine.wall_ns -= 200_000
        assert offset_ns == before_ns
    assert watch.look() is None


def test_slow_drift_is_followed() -> None:
    machine = Machine()
    clock = machine.clock()
    for _ in range(100):
        machine.passes(1)
        machine.wall_ns += 1_000_000  # 1 ms a second
        assert abs(machine.monotonic_ns + clock.offset_ns() - machine.wall_ns) <= 6_000_000
