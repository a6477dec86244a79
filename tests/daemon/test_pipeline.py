"""The pipeline on a clock of its own, as replay drives it: ages, drops and decisions are exact."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from avq.clock import ReplayClock
from avq.daemon import Parts, Pipeline
from avq.daemon.inbox import Arrival, Inbox
from avq.types import U8, Frame, LatencyBudget, ModelInput, Published, RawOutputs, StageTimes
from tests.daemon.daemon_kit import canned_output, null_parts

PIXELS = np.zeros((8, 8, 3), np.uint8)
MS = 1_000_000


class TimedSession:
    """An engine that takes ``infer_ns`` of the replay clock."""

    engine, precision = "timed", "f32"

    def __init__(self, clock: ReplayClock, infer_ns: list[int]) -> None:
        self._clock = clock
        self._left = infer_ns

    def infer(self, tensor: U8) -> RawOutputs:
        self._clock.advance_by(self._left.pop(0))
        return {"out": canned_output(2)}

    def run(self, feeds: Any) -> RawOutputs:
        return self.infer(feeds)

    def close(self) -> None:
        """Nothing to free."""


class Kept:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.messages: list[Published] = []
        self.waits: list[bool] = []
        self.events: list[dict[str, Any]] = []

    def publish(self, message: Published, frame: Frame, times: StageTimes, *, wait: bool) -> None:
        self.messages.append(message)
        self.waits.append(wait)

    def event(self, event: dict[str, Any]) -> None:
        self.events.append(event)


def timed_parts(clock: ReplayClock, infer_ns: list[int]) -> Parts:
    parts = null_parts()
    return Parts(
        parts.preprocessor, TimedSession(clock, infer_ns), parts.decoder, parts.labels, "d", (64, 64)
    )


def replay(
    arrivals_ns: list[int], infer_ns: list[int], budget: LatencyBudget
) -> tuple[Kept, Pipeline, Inbox]:
    """One live camera whose frames arrive at the given times; the loop takes the newest whenever it is free."""
    clock, kept, inbox = ReplayClock(), cast(Any, Kept()), Inbox()
    pipeline = Pipeline(timed_parts(clock, infer_ns), clock, budget, kept)
    inbox.open_camera("front", every=False)
    waiting = list(enumerate(arrivals_ns))
    while True:
        while waiting and waiting[0][1] <= clock.now_ns():
            seq, t_ns = waiting.pop(0)
            inbox.offer(Arrival(Frame("front", seq, t_ns, PIXELS)), {})
        arrival = inbox.take()
        if arrival is not None:
            pipeline.process(arrival)
            inbox.finished("front")
        elif waiting:
            clock.advance_to(waiting[0][1])
        else:
            return kept, pipeline, inbox


@settings(max_examples=60, deadline=None)
@given(service_ms=st.integers(1, 400), frames=st.integers(1, 120))
def test_a_slow_consumer_sees_fresh_frames_and_every_drop_is_counted(service_ms: int, frames: int) -> None:
    period = 33 * MS
    kept, pipeline, inbox = replay(
        [seq * period for seq in range(frames)], [service_ms * MS] * frames, LatencyBudget(50 * MS)
    )
    ages = [message.age_ns for message in kept.messages]
    assert max(ages[:-1], default=0) <= period + service_ms * MS
    assert ages[-1] <= 2 * service_ms * MS  # nothing newer came after it
    account = inbox.counts()
    assert account.balanced and account.in_flight == 0
    assert (account.captured, account.published) == (frames, len(kept.messages))
    assert sum(message.dropped_since_last for message in kept.messages) == account.dropped.get(
        "superseded", 0
    )
    assert kept.messages[-1].detections.seq == frames - 1
    assert [message.late for message in kept.messages] == [age > 50 * MS for age in ages]
    assert pipeline.judge.misses == sum(age > 50 * MS for age in ages)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=60))
def test_the_same_log_gives_the_same_decisions(steps: list[tuple[int, int]]) -> None:
    arrivals, at_ns = [], 0
    for gap, _ in steps:
        at_ns += gap * MS
        arrivals.append(at_ns)
    budget = LatencyBudget(40 * MS, 10, 0.2)
    runs = [replay(arrivals, [ms * MS for _, ms in steps], budget) for _ in range(2)]
    first, second = (
        [(m.detections.seq, m.age_ns, m.late, m.dropped_since_last, m.mode) for m in kept.messages]
        for kept, _, _ in runs
    )
    assert first == second
    assert runs[0][0].events == runs[1][0].events
    assert runs[0][1].metrics.snapshot() == runs[1][1].metrics.snapshot()


def test_stage_times_are_told_apart() -> None:
    clock, kept = ReplayClock(100 * MS), cast(Any, Kept())
    pipeline = Pipeline(timed_parts(clock, [7 * MS]), clock, LatencyBudget(1), kept)
    turn = pipeline.process(Arrival(Frame("front", 3, 60 * MS, PIXELS)))
    assert turn.times == StageTimes(queue_ns=40 * MS, preprocess_ns=0, infer_ns=7 * MS, decode_ns=0)
    assert turn.published.age_ns == 47 * MS
    assert turn.published.dropped_since_last == 3
    assert kept.waits == [False]


def test_a_file_waits_for_us_so_its_frames_are_captured_when_they_are_taken() -> None:
    clock, kept = ReplayClock(100 * MS), cast(Any, Kept())
    pipeline = Pipeline(timed_parts(clock, [7 * MS]), clock, LatencyBudget(10 * MS), kept)
    turn = pipeline.process(Arrival(Frame("file", 0, 60 * MS, PIXELS), live=False))
    assert (turn.published.age_ns, turn.published.late) == (7 * MS, False)
    assert turn.published.detections.t_capture_ns == 100 * MS
    assert kept.waits == [True]


def test_a_sustained_miss_is_an_event_with_its_numbers() -> None:
    frames = 40
    kept, pipeline, _ = replay(
        [seq * 33 * MS for seq in range(frames)],
        [20 * MS] * 20 + [45 * MS] * 20,
        LatencyBudget(33 * MS, 10, 0.1),
    )
    assert [event["kind"] for event in kept.events] == ["alert_raised"]
    event = kept.events[0]
    assert (event["camera"], event["mode"], event["alert"]) == ("front", "normal", True)
    assert event["seq"] == 21
    assert list(pipeline.events) == kept.events


def test_preprocess_is_the_real_one() -> None:
    parts = null_parts()
    got = parts.preprocessor.prepare(np.full((48, 64, 3), 9, np.uint8))
    assert isinstance(got, ModelInput) and got.tensor.shape == (1, 3, 64, 64)


def test_each_camera_may_have_its_own_deadline() -> None:
    clock, kept = ReplayClock(), cast(Any, Kept())
    pipeline = Pipeline(
        timed_parts(clock, [30 * MS] * 4), clock, LatencyBudget(50 * MS), kept, deadlines_ns={"rear": 20 * MS}
    )
    for seq, camera in enumerate(["front", "rear"] * 2):
        clock.advance_to(seq * 100 * MS)
        pipeline.process(Arrival(Frame(camera, seq // 2, clock.now_ns(), PIXELS)))
    assert [message.late for message in kept.messages] == [False, True, False, True]
    assert pipeline.judge.misses == 2
