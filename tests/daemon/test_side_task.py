"""Work beside the frame path: a shadow that agrees or not, an aside that holds nobody up, memory that grows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from avq.clock import SystemClock
from avq.daemon import Parts, RunSummary
from avq.daemon.inbox import FrameCounts
from avq.daemon.memory import SAMPLE_S, MemoryWatch
from avq.daemon.metrics import Metrics
from avq.daemon.shadow import Shadow
from avq.daemon.side_task import Finding, SideTaskWorker
from avq.daemon.step import step
from avq.process import resident_bytes
from avq.serve import summary_tables
from avq.types import Detections, Frame, Published
from tests.daemon.daemon_kit import canned_output, null_parts
from tests.engines.null import NullSession

PICTURE = np.zeros((64, 64, 3), np.uint8)
MB = 1 << 20


def frame(seq: int, camera: str = "front") -> Frame:
    return Frame(camera, seq, 0, PICTURE)


def parts_with(change: Callable[[np.ndarray], None], boxes: int = 4) -> Parts:
    """A bundle whose network gives ``boxes`` boxes, changed."""
    output = canned_output(boxes)
    change(output)
    return replace(null_parts(), session=NullSession({"out": output}, 0, "f32"))


def served_by(parts: Parts) -> Detections:
    return step(frame(0), parts, SystemClock())[0]


def nothing(output: np.ndarray) -> None:
    pass


def lose_one(output: np.ndarray) -> None:
    output[0, 4:, 0] = 0


def other_class(output: np.ndarray) -> None:
    output[0, 4:, 0] = output[0, 4:, 0][::-1].copy()


@pytest.mark.parametrize(
    ("change", "agreement", "lost", "added"),
    [(nothing, 1.0, 0, 0), (lose_one, 6 / 7, 1, 0), (other_class, 6 / 8, 1, 1)],
)
def test_a_shadow_tells_how_far_it_agrees(
    change: Callable[[np.ndarray], None], agreement: float, lost: int, added: int
) -> None:
    serving = served_by(parts_with(nothing))
    assert len(serving) == 4
    shadow = Shadow(parts_with(change), report_every=2)
    assert shadow.state()["agreement"] is None
    assert shadow.examine(frame(0), serving, "b") == []
    (event,) = shadow.examine(frame(1), serving, "b")
    assert event["kind"] == "shadow_report" and "over 2 frames" in event["reason"]
    state = shadow.state()
    assert state["agreement"] == pytest.approx(agreement, abs=1e-4)
    assert (state["lost"], state["added"], state["frames"]) == (2 * lost, 2 * added, 2)
    shadow.examine(frame(2), serving, "another bundle serves")
    assert shadow.state()["frames"] == 1


class Worker:
    """SideTask for as long as it is told to."""

    def __init__(self) -> None:
        self.looked: list[tuple[str, int]] = []
        self.go = threading.Semaphore(0)
        self.closed = False

    def examine(self, frame: Frame, detections: Detections, bundle: str) -> list[Finding]:
        assert self.go.acquire(timeout=60)
        self.looked.append((frame.camera, frame.seq))
        if frame.seq == 666:
            raise ValueError("a bad frame")
        return [{"kind": "looked", "reason": "it was its turn"}]

    def on_bundle(self, bundle: object) -> None:
        self.looked.append(("bundle", 0))

    def state(self) -> Mapping[str, Any]:
        return {"frames": len(self.looked)}

    def close(self) -> None:
        self.closed = True


def published(one: Frame) -> Published:
    return Published(Detections.none(one.camera, one.seq), 0, 0, False, "normal", "digest")


def show(aside: SideTaskWorker, one: Frame, *, relaxed: bool = True) -> None:
    aside.on_frame(one, published(one), relaxed=relaxed)


def until_idle(aside: SideTaskWorker) -> None:
    """Wait until the worker has come back: its thread may be late."""
    pause = threading.Event()
    for _ in range(6000):
        if aside._idle:
            return
        pause.wait(0.01)
    raise AssertionError("the worker never came back")


def events_of(aside: SideTaskWorker, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    pause = threading.Event()
    for _ in range(6000):
        while (event := aside.events.next()) is not None:
            found.append({**event})
        if len(found) >= count:
            return found
        pause.wait(0.01)
    raise AssertionError(found)


def test_an_aside_sees_every_nth_frame_of_each_camera_and_skips_while_it_is_busy() -> None:
    worker = Worker()
    aside = SideTaskWorker("shadow", 3, worker)
    for seq in range(2):
        show(aside, frame(seq))  # 0 is looked at
        show(aside, frame(seq, "rear"))  # 0's turn, but the worker is busy: the next one's turn
    assert aside.skipped == 2
    worker.go.release()
    (event,) = events_of(aside, 1)
    until_idle(aside)
    assert (event["kind"], event["camera"]) == ("looked", "front") and event["t_ns"] > 0
    worker.go.release(10)
    for seq in range(2, 8):
        show(aside, frame(seq))
        show(aside, frame(seq, "rear"))
        until_idle(aside)
    aside.close()
    assert worker.closed and worker.looked[0] == ("front", 0)
    assert [seq for camera, seq in worker.looked if camera == "front"][1:] == [3, 6]
    assert aside.state()["frames"] == len(worker.looked)


def test_a_run_too_short_for_a_report_ends_with_what_its_shadow_saw() -> None:
    shadow = Shadow(parts_with(lose_one))
    shadow.examine(frame(0), served_by(parts_with(nothing)), "serving")
    summary = RunSummary(
        FrameCounts(1, 1, {}, 0), 0, Metrics().snapshot(), (), side_tasks={"shadow": shadow.state()}
    )
    titles = dict(summary_tables(summary))
    (row,) = titles["Candidate in the shadow"]
    assert (row["frames"], row["lost"], row["added"]) == (1, 1, 0)
    assert "Drift" not in titles


def test_where_there_is_no_time_to_spare_a_shadow_waits() -> None:
    worker = Worker()
    aside = SideTaskWorker("shadow", 1, worker, in_spare_time=True)
    worker.go.release(10)
    for seq in range(5):
        show(aside, frame(seq), relaxed=False)
    aside.close()
    assert worker.looked == [] and aside.skipped == 5


def test_what_breaks_beside_the_frame_path_stays_there_and_is_told_once() -> None:
    worker = Worker()
    worker.go.release(10)
    aside = SideTaskWorker("drift", 1, worker)
    show(aside, frame(666))
    (event,) = events_of(aside, 1)
    assert event["kind"] == "drift_failed" and "a bad frame" in event["reason"]
    show(aside, frame(1))
    aside.close()
    assert len(worker.looked) == 1 and "a bad frame" in aside.state()["error"]


def watched(levels_mb: Callable[[int], float], hours: float, pid: int = 7) -> list[dict[str, Any]]:
    """Events of a watch whose camera process has the given megabytes at each sample."""
    now_s = [0.0]
    samples = [0]

    def resident(asked: int) -> int:
        samples[0] += asked == pid
        return int(levels_mb(samples[0]) * MB) if asked == pid else 50 * MB

    watch = MemoryWatch(lambda: {"front": pid}, lambda: now_s[0], resident)
    found: list[dict[str, Any]] = []
    while now_s[0] < hours * 3600:
        found += [{**event} for event in watch.sample()]
        now_s[0] += SAMPLE_S / 2
    return found


def test_memory_that_only_grows_is_told_once_an_hour_with_its_rate() -> None:
    found = watched(lambda n: 100 + n / 6, hours=3.1)  # a megabyte a minute
    assert len(found) == 3 and {event["process"] for event in found} == {"capture of front"}
    assert all(event["kind"] == "memory_grows" and 55 <= event["mb_per_hour"] <= 65 for event in found)


@pytest.mark.parametrize(
    "levels_mb",
    [
        lambda n: 100 + min(n, 120),  # fills a cache of 100 MB, then no more
        lambda n: 100 + n % 60,  # a saw
        lambda n: 100 + n / 200,  # less than 2 MB an hour
        lambda n: 100 + np.random.default_rng(n).normal(0, 20),
    ],
)
def test_memory_that_fills_swings_or_creeps_is_left_alone(levels_mb: Callable[[int], float]) -> None:
    assert watched(levels_mb, hours=6) == []


def test_a_process_that_is_gone_has_no_memory() -> None:
    assert resident_bytes(2**22 + 1) is None and (resident_bytes(1) or 0) >= 0
