"""Sinks on their own threads: slow ones miss, broken ones stop, none holds up the frame path."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

from avq.daemon.publisher import MESSAGES_QUEUED, PICTURES_QUEUED, Publisher
from avq.sinks import CallbackSink
from avq.types import Detections, Frame, Published, StageTimes

TIMES = StageTimes(1, 2, 3, 4)
#: Ends a test that hangs; no machine is so busy.
HANG_S = 60


def message(seq: int) -> tuple[Published, Frame]:
    seen = Detections.none("front", seq, seq)
    return Published(seen, 1, 0, False, "normal", "d"), Frame(
        "front", seq, seq, np.full((4, 4, 3), seq % 256, np.uint8)
    )


def until(come: Callable[[], bool]) -> None:
    """Wait for it: a thread of a sink may start late."""
    pause, end_s = threading.Event(), time.monotonic() + HANG_S
    while not come():
        assert time.monotonic() < end_s
        pause.wait(0.002)


def send(publisher: Publisher, count: int, *, wait: bool = False) -> None:
    for seq in range(count):
        publisher.publish(*message(seq), TIMES, wait=wait)


def test_a_slow_sink_misses_messages_and_they_are_counted() -> None:
    may_go, got = threading.Event(), []

    def slow(published: Published, frame: Frame | None) -> None:
        may_go.wait(HANG_S)
        got.append(published.detections.seq)

    publisher = Publisher([CallbackSink(slow, wants_pixels=False)])
    send(publisher, MESSAGES_QUEUED + 50)
    may_go.set()
    (report,) = publisher.close()
    assert report.written == len(got) and got == sorted(got)
    # the thread may take its first message late: those up to the queue's end come, or one more that it held already
    assert got[:MESSAGES_QUEUED] == list(range(MESSAGES_QUEUED))
    assert report.written + report.missed == MESSAGES_QUEUED + 50
    assert report.written in (MESSAGES_QUEUED, MESSAGES_QUEUED + 1)  # one may be in its hands already


def test_a_file_waits_for_its_sink() -> None:
    pause, got = threading.Event(), []

    def slow(published: Published, frame: Frame | None) -> None:
        pause.wait(0.002)
        assert frame is not None
        got.append((published.detections.seq, int(frame.pixels[0, 0, 0])))

    publisher = Publisher([CallbackSink(slow)])
    send(publisher, 5 * PICTURES_QUEUED, wait=True)
    (report,) = publisher.close()
    assert (report.written, report.missed) == (5 * PICTURES_QUEUED, 0)
    assert got == [(seq, seq) for seq in range(5 * PICTURES_QUEUED)]


def test_a_broken_sink_is_told_and_does_not_break_the_others() -> None:
    got = []

    def breaks(published: Published, frame: Frame | None) -> None:
        if published.detections.seq == 2:
            raise BrokenPipeError("the reader has gone")

    good = CallbackSink(lambda published, frame: got.append(published.detections.seq), wants_pixels=False)
    publisher = Publisher([CallbackSink(breaks, wants_pixels=False), good])
    send(publisher, 10)
    broken, fine = publisher.close()
    assert (broken.written, broken.missed) == (2, 8)
    assert broken.error == "BrokenPipeError: the reader has gone"
    assert (fine.written, fine.missed, fine.error) == (10, 0, "")
    assert got == list(range(10))
    assert publisher.alive


def test_when_every_sink_has_broken_nobody_listens() -> None:
    def breaks(published: Published, frame: Frame | None) -> None:
        raise OSError("no space left on device")

    publisher = Publisher([CallbackSink(breaks, wants_pixels=False)])
    send(publisher, 1)
    assert publisher.close()[0].error == "OSError: no space left on device"
    assert not publisher.alive
    assert Publisher([]).alive


def test_a_sink_that_hangs_is_given_up_and_its_messages_counted() -> None:
    hung, hang = threading.Event(), threading.Event()

    def hangs(*_: object) -> None:
        hung.set()
        hang.wait(HANG_S)

    publisher = Publisher([CallbackSink(hangs, wants_pixels=False)])
    send(publisher, 7)
    assert hung.wait(HANG_S)
    (report,) = publisher.close(timeout_s=0.2)
    assert (report.written, report.missed) == (0, 7)
    assert "did not finish" in report.error
    hang.set()


def test_sinks_that_hang_do_not_take_the_time_of_the_others() -> None:
    hang, may_go, got = threading.Event(), threading.Event(), []

    def slow(published: Published, frame: Frame | None) -> None:
        may_go.wait(HANG_S)
        got.append(published.detections.seq)

    hung = [CallbackSink(lambda *_: cast(None, hang.wait(HANG_S)), wants_pixels=False) for _ in range(3)]
    publisher = Publisher(
        [*hung, CallbackSink(slow, wants_pixels=False)], lambda event: cast(None, hang.wait(HANG_S))
    )
    publisher.event(cast(Any, {"kind": "alert_raised"}))
    send(publisher, 20)
    threading.Timer(0.1, may_go.set).start()
    reports = publisher.close(timeout_s=3.0)
    assert [report.missed for report in reports] == [20, 20, 20, 0] and got == list(range(20))
    assert ["did not finish" in report.error for report in reports] == [True, True, True, False]
    hang.set()


def test_events_that_a_hung_sink_never_got_are_counted() -> None:
    class Alerts(CallbackSink):
        events_only = True

        def write_event(self, event: Mapping[str, Any]) -> None:
            if event["number"] == 2:
                hung.set()
                hang.wait(HANG_S)

    hung, hang = threading.Event(), threading.Event()
    publisher = Publisher([Alerts(lambda *_: None, wants_pixels=False)])
    for number in range(9):
        publisher.event(cast(Any, {"kind": "alert", "number": number}))
    assert hung.wait(HANG_S)
    (report,) = publisher.close(timeout_s=0.2)
    assert (report.written, report.missed) == (2, 7)
    hang.set()


def test_a_sink_that_hangs_only_while_it_is_closed_missed_nothing() -> None:
    class Slow(CallbackSink):
        def close(self) -> None:
            hang.wait(HANG_S)

    hang = threading.Event()
    publisher = Publisher([Slow(lambda *_: None, wants_pixels=False)])
    send(publisher, 5)
    until(lambda: publisher.reports()[0].written == 5)
    (report,) = publisher.close(timeout_s=0.2)
    assert (report.written, report.missed) == (5, 0) and "did not finish" in report.error
    hang.set()


def test_reports_tell_what_waits_and_where_it_goes() -> None:
    busy, may_go = threading.Event(), threading.Event()

    def slow(published: Published, frame: Frame | None) -> None:
        busy.set()
        may_go.wait(HANG_S)

    sinks = [CallbackSink(slow, wants_pixels=False), CallbackSink(lambda *_: None, wants_pixels=False)]
    publisher = Publisher(sinks, addresses=["standard output"])
    send(publisher, 6)
    assert busy.wait(HANG_S)
    rows = [report.as_json() for report in publisher.reports()]
    assert [row["address"] for row in rows] == ["standard output", ""] and rows[0]["queued"] == 5
    may_go.set()
    assert [report.queued for report in publisher.close()] == [0, 0]


def test_a_waiting_publisher_lets_go_when_the_run_is_to_stop() -> None:
    hang = threading.Event()
    publisher = Publisher([CallbackSink(lambda *_: cast(None, hang.wait(HANG_S)))])
    threading.Timer(0.1, publisher.stop_blocking).start()
    send(publisher, PICTURES_QUEUED + 3, wait=True)
    hang.set()
    (report,) = publisher.close()
    assert report.written + report.missed == PICTURES_QUEUED + 3 and report.missed >= 1


def test_events_go_to_the_listener_and_to_sinks_that_keep_them() -> None:
    class Keeper(CallbackSink):
        events_only = False

        def __init__(self) -> None:
            super().__init__(lambda *_: None, wants_pixels=False)
            self.events: list[Mapping[str, Any]] = []
            self.closed = False

        def write_event(self, event: Mapping[str, Any]) -> None:
            self.events.append(event)

        def close(self) -> None:
            self.closed = True

    heard: list[Mapping[str, Any]] = []
    keeper = Keeper()
    publisher = Publisher([keeper, CallbackSink(lambda *_: None)], heard.append)
    publisher.event(cast(Any, {"kind": "alert_raised"}))
    publisher.close()
    assert heard == keeper.events == [{"kind": "alert_raised"}]
    assert keeper.closed


def test_a_listener_that_raises_is_isolated() -> None:
    def listener(event: Mapping[str, Any]) -> None:
        raise RuntimeError("a plugin's bug")

    publisher = Publisher([], listener)
    publisher.event(cast(Any, {"kind": "alert_raised"}))
    send(publisher, 3)
    assert publisher.close() == []
