"""The ladder in the pipeline, on a virtual clock: who is served how, what is dropped, what is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from avq.clock import ReplayClock
from avq.daemon import Parts, Pipeline
from avq.daemon.inbox import STRIDE, Arrival, Inbox
from avq.daemon.modes import Mode, rungs, warm_modes
from avq.daemon.pipeline import FrameRateEstimator
from avq.types import U8, Frame, LatencyBudget, RawOutputs
from tests.daemon.daemon_kit import LABELS, canned_output, null_parts
from tests.daemon.test_pipeline import Kept

MS = 1_000_000
PERIOD_NS = 33_333_333
PIXELS = np.zeros((8, 8, 3), np.uint8)
BUDGET = LatencyBudget(50 * MS)
Load = Callable[[int], float]


class LoadedSession:
    """An engine whose work takes ``cost_ns`` times the machine's load at that moment, on the replay clock."""

    engine, precision = "loaded", "f32"

    def __init__(self, clock: ReplayClock, cost_ns: int, load: Load) -> None:
        self._clock, self._cost_ns, self._load = clock, cost_ns, load

    def infer(self, tensor: U8) -> RawOutputs:
        self._clock.advance_by(round(self._cost_ns * self._load(self._clock.now_ns())))
        return {"out": canned_output(2)}

    def run(self, feeds: Any) -> RawOutputs:
        return self.infer(feeds)

    def close(self) -> None:
        """Nothing to free."""


def mode(name: str, session: LoadedSession, stride: int = 1, cost_ns: float = 0.0) -> Mode:
    parts = null_parts()
    return Mode(
        Parts(parts.preprocessor, session, parts.decoder, LABELS, f"digest of {name}", (64, 64), name),
        stride,
        cost_ns,
    )


def ladder(clock: ReplayClock, load: Load, *rows: tuple[str, int, int]) -> list[Mode]:
    """Modes of (name, milliseconds on an idle machine, stride)."""
    return [mode(name, LoadedSession(clock, ms * MS, load), stride, ms * MS) for name, ms, stride in rows]


class Drive:
    """Live cameras with frames at their own times; the loop takes the newest whenever it is free."""

    def __init__(self, load: Load, *rows: tuple[str, int, int], budget: LatencyBudget = BUDGET) -> None:
        self.clock, self.kept, self.inbox = ReplayClock(), cast(Any, Kept()), Inbox()
        self.pipeline = Pipeline(ladder(self.clock, load, *rows), self.clock, budget, self.kept)

    def run(self, frames: int, cameras: tuple[str, ...] = ("front",)) -> Drive:
        for camera in cameras:
            self.inbox.open_camera(camera, every=False)
        waiting = [(seq * PERIOD_NS, camera, seq) for seq in range(frames) for camera in cameras]
        while True:
            while waiting and waiting[0][0] <= self.clock.now_ns():
                t_ns, camera, seq = waiting.pop(0)
                self.inbox.offer(Arrival(Frame(camera, seq, t_ns, PIXELS)), {})
            arrival = self.inbox.take()
            if arrival is not None:
                self._serve(arrival)
            elif waiting:
                self.clock.advance_to(waiting[0][0])
            else:
                return self

    def _serve(self, arrival: Arrival) -> None:
        if self.pipeline.wants(arrival.frame):
            self.pipeline.process(arrival)
            self.inbox.finished(arrival.frame.camera)
        else:
            self.inbox.finished(arrival.frame.camera, STRIDE)

    @property
    def moves(self) -> list[tuple[str, str]]:
        return [(e["from"], e["mode"]) for e in self.kept.events if e["kind"] == "mode_changed"]


def between(start_frame: int, stop_frame: int, load: float) -> Load:
    """A machine that is ``load`` times slower between two frames of the camera."""
    return lambda now_ns: load if start_frame * PERIOD_NS <= now_ns < stop_frame * PERIOD_NS else 1.0


ROWS = (("best", 20, 1), ("smaller", 8, 1))


def test_it_degrades_within_three_frames_of_an_overrun_and_recovers() -> None:
    drive = Drive(between(100, 300, 4.0), *ROWS).run(500)
    assert drive.moves == [("best", "smaller"), ("smaller", "best")]
    assert list(drive.pipeline.modes) == ["best", "smaller", "best"]
    late = [message for message in drive.kept.messages if message.late]
    assert len(late) <= 4  # three that showed it, and one that waited for the last of them
    names = [message.mode for message in drive.kept.messages]
    first = names.index("smaller")
    assert [message.late for message in drive.kept.messages].index(True) == first - 3
    assert {message.bundle_digest for message in drive.kept.messages if message.mode == "smaller"} == {
        "digest of smaller"
    }


def test_every_change_is_an_event_with_its_numbers_and_no_alert_where_cheaper_work_held() -> None:
    drive = Drive(between(100, 300, 4.0), *ROWS).run(500)
    assert [event["kind"] for event in drive.kept.events] == ["mode_changed"] * 2
    down, up = drive.kept.events
    assert (
        "3 frames in a row took 80.0 ms" in down["reason"] and "'smaller' will take 32.0 ms" in down["reason"]
    )
    assert "'best' will take" in up["reason"]
    assert (down["camera"], down["alert"], up["mode"]) == ("front", False, "best")
    assert list(drive.pipeline.events) == drive.kept.events


def test_where_even_the_cheapest_mode_is_late_there_is_an_alert() -> None:
    drive = Drive(between(100, 300, 20.0), *ROWS).run(500)
    kinds = [event["kind"] for event in drive.kept.events]
    assert kinds.count("alert_raised") == 1 and kinds.index("mode_changed") < kinds.index("alert_raised")
    raised = next(event for event in drive.kept.events if event["kind"] == "alert_raised")
    assert raised["mode"] == "smaller" and raised["alert"]
    assert "alert_cleared" in kinds


@settings(max_examples=40, deadline=None)
@given(stride=st.integers(1, 5), frames=st.integers(1, 80), cameras=st.sampled_from([("a",), ("a", "b")]))
def test_a_stride_is_a_cause_of_its_own_in_exact_books(
    stride: int, frames: int, cameras: tuple[str, ...]
) -> None:
    drive = Drive(lambda _: 1.0, ("only", 5, stride)).run(frames, cameras)
    account = drive.inbox.counts()
    each = -(-frames // stride)
    assert account.balanced and account.in_flight == 0
    assert (account.captured, account.published) == (frames * len(cameras), each * len(cameras))
    assert account.dropped == ({STRIDE: account.captured - account.published} if each < frames else {})
    seqs = [m.detections.seq for m in drive.kept.messages if m.detections.camera == "a"]
    assert seqs == list(range(0, frames, stride))


def test_a_coarser_stride_keeps_the_deadline_where_frames_would_wait_for_each_other() -> None:
    # 40 ms of service at a period of 33 ms: every frame waits; taking every second one, none does.
    drive = Drive(between(60, 10**6, 4.0), ("every", 10, 1), ("second", 10, 2)).run(400)
    assert drive.moves == [("every", "second")]
    after = [m for m in drive.kept.messages if m.mode == "second"]
    assert not any(m.late for m in after[2:])
    account = drive.inbox.counts()
    assert account.balanced and account.dropped[STRIDE] > 100


def test_the_same_frames_give_the_same_modes() -> None:
    def decisions() -> list[Any]:
        drive = Drive(between(50, 120, 3.0), *ROWS).run(250)
        return [
            drive.kept.events,
            [(m.detections.seq, m.mode, m.age_ns, m.late) for m in drive.kept.messages],
            drive.inbox.counts(),
        ]

    assert decisions() == decisions()


def test_cameras_share_the_engine_so_a_round_of_them_must_fit() -> None:
    """30 ms of one camera hold 50 ms; two cameras that come at once take 60 ms."""
    alone = Drive(lambda _: 1.0, ("best", 30, 1), ("smaller", 12, 1)).run(200)
    assert alone.moves == []
    pair = Drive(lambda _: 1.0, ("best", 30, 1), ("smaller", 12, 1)).run(200, ("left", "right"))
    assert pair.moves == [("best", "smaller")]
    assert not any(message.late for message in pair.kept.messages[20:])


def test_one_mode_never_moves_and_alerts_as_before() -> None:
    drive = Drive(between(100, 300, 4.0), ("only", 20, 1)).run(500)
    assert drive.moves == []
    assert [event["kind"] for event in drive.kept.events] == ["alert_raised", "alert_cleared"]


def test_files_have_no_period_so_only_the_service_time_counts() -> None:
    clock, kept = ReplayClock(), cast(Any, Kept())
    modes = ladder(clock, between(20, 10**6, 3.0), ("best", 20, 1), ("smaller", 8, 1))
    pipeline = Pipeline(modes, clock, BUDGET, kept)
    for seq in range(60):
        pipeline.process(Arrival(Frame("file", seq, 0, PIXELS), live=False))
        clock.advance_by(20 * MS)
    assert list(pipeline.modes) == ["best", "smaller"]


def test_costs_are_measured_before_the_first_frame_and_a_shared_session_once() -> None:
    clock, calls = ReplayClock(), []

    class Counted(LoadedSession):
        def infer(self, tensor: U8) -> RawOutputs:
            calls.append(self)
            return super().infer(tensor)

    best, small = Counted(clock, 20 * MS, lambda _: 1.0), Counted(clock, 8 * MS, lambda _: 1.0)
    modes = warm_modes([mode("best", best), mode("second", best, 2), mode("small", small)], clock)
    assert [m.cost_ns for m in modes] == [20 * MS, 20 * MS, 8 * MS]
    assert calls.count(best) == calls.count(small) >= 5
    assert [r.cost_ns for r in rungs(modes, cameras=2)] == [40 * MS, 40 * MS, 16 * MS]
    known = warm_modes([replace(modes[0], cost_ns=5.0), modes[2]], clock)
    assert known[0].cost_ns == 5.0


def test_the_period_is_told_from_sequence_numbers_whatever_is_dropped() -> None:
    frame_rate = FrameRateEstimator()
    assert (frame_rate.period_ns, frame_rate.cameras) == (0.0, 1)
    for seq in (0, 1, 4, 5, 9):
        frame_rate.on_frame("front", seq, seq * PERIOD_NS)
    for seq in range(3):
        frame_rate.on_frame("slow", seq, seq * 5 * PERIOD_NS)
    assert (frame_rate.period_ns, frame_rate.cameras) == (PERIOD_NS, 2)
    for seq in range(3, 20):
        frame_rate.on_frame("slow", seq, seq * 5 * PERIOD_NS)
    assert (frame_rate.period_ns, frame_rate.cameras) == (5 * PERIOD_NS, 1)  # the other one died
