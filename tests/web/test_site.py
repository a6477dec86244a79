"""The endpoints of a run, asked over real connections while the real loop serves."""

from __future__ import annotations

import ctypes
import json
import socket
import threading
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, cast

import cv2
import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from avq.errors import BundleError
from avq.sinks import CallbackSink
from avq.types.frame import MessageJson
from avq.web import LiveState
from avq.web.server import open_site
from avq.web.status import not_alive, not_ready
from tests.daemon.daemon_kit import LABELS, picture_folder
from tests.web.web_kit import ASK, FACTS, HANG_S, events_of, live, turn, until

SCENE = "scene://drive?seed=2&fps=30&size=320x192"


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Mapping[Any, float], name: str, **labels: str) -> float:
    return found[name, tuple(sorted(labels.items()))]


def test_ready_only_after_frames_were_published_and_no_longer_than_the_run() -> None:
    with open_site("127.0.0.1", 0, None) as (_, address):
        assert ASK.get(address + "/livez").status_code == 200
        waits = ASK.get(address + "/readyz")
        assert waits.status_code == 503 and "opened and warmed up" in waits.json()["reason"]
    with live(SCENE) as run:
        run.wait_for(2)
        assert run.get("/readyz").json() == {"ok": True, "reason": ""}
        assert run.get("/livez").status_code == 200
        run.stopping = True
        until(lambda: run.live_state.over)
        over = run.get("/readyz")
        assert over.status_code == 503 and "over" in over.json()["reason"]


def test_silence_is_measured_by_what_is_usual_and_a_loop_that_stands_is_not_alive() -> None:
    live_state = LiveState()
    assert not not_alive(live_state, 0)
    live_state.on_open(None)  # type: ignore[arg-type]
    live_state.run = object()  # type: ignore[assignment]
    live_state.on_frame(*turn(0))
    now_ns = live_state.last_tick_ns = live_state.cameras["front"].seen_ns
    assert not not_ready(live_state, now_ns + 4_900_000_000)
    live_state.last_tick_ns += 10_000_000_000
    assert "no frame has been published for 10.0 s" in not_ready(live_state, now_ns + 10_000_000_000)
    live_state.cameras["front"].gap_ns = 4_000_000_000  # a slow camera
    assert not not_ready(live_state, now_ns + 10_000_000_000)
    assert "the loop has been blocked for 6.0 s" in not_alive(
        live_state, live_state.last_tick_ns + 6_000_000_000
    )
    live_state.on_end()
    assert not not_alive(live_state, live_state.last_tick_ns + 60_000_000_000)


def test_metrics_hold_every_frame_exactly(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "p", 25)
    (folder / "0007.png").write_bytes(b"broken")
    with live(str(folder)) as run:
        run.wait_for(24)
        run.wait_for_end()
        found = samples(run.get("/metrics").text)
        status = run.get("/status").json()
    assert value(found, "avq_frames_captured_total", camera="front") == 25
    assert value(found, "avq_frames_total", camera="front", outcome="published") == 24
    assert value(found, "avq_frames_total", camera="front", outcome="dropped") == 1
    assert value(found, "avq_frames_dropped_total", camera="front", cause="unreadable") == 1
    assert value(found, "avq_frames_in_flight", camera="front") == 0
    assert value(found, "avq_mode", mode="normal") == 1
    assert value(found, "avq_sink_messages_total", sink="CallbackSink", number="0", outcome="written") == 24
    assert value(found, "avq_engine_info", engine="null", precision="f32", sha256="digest") == 1
    assert value(found, "avq_process_resident_memory_bytes") > 1e7
    ages = [turn.published.age_ns for turn in run.turns]
    for point, name in (("publish", "avq_frame_age_seconds"), ("infer", "avq_stage_duration_seconds")):
        label = {"point": point} if name == "avq_frame_age_seconds" else {"stage": point}
        assert value(found, f"{name}_count", camera="front", **label) == 24
    assert value(found, "avq_frame_age_seconds_sum", camera="front", point="publish") == pytest.approx(
        sum(ages) / 1e9
    )
    misses = sum(count for (name, _), count in found.items() if name == "avq_deadline_misses_total")
    assert misses == sum(turn.published.late for turn in run.turns)
    assert status["frames"] | {"misses": 0} == {
        "captured": 25, "published": 24, "dropped": {"unreadable": 1}, "in_flight": 0, "misses": 0,
    }  # fmt: skip
    assert [event["kind"] for event in status["events"]] == ["unreadable"] or status["events"]
    assert status["frames"].items() <= status.items() and status["max_ms"] == status["age"]["max_ms"]
    assert status["stages"].keys() == {"queue", "preprocess", "infer", "decode"}


def test_a_picture_comes_with_its_own_boxes(tmp_path: Path) -> None:
    del tmp_path
    with live(SCENE) as run:
        run.wait_for(1)
        seen: list[Any] = []
        for _ in range(4):
            answer = run.get(f"/camera/front.jpg?after={seen[-1]['number'] if seen else 0}")
            assert answer.status_code == 200 and answer.headers["content-type"] == "image/jpeg"
            run_info = json.loads(answer.headers["avq-frame"])
            picture = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)
            assert (
                np.shape(cast(Any, picture))[:2]
                == (run_info["height_px"], run_info["width_px"])
                == (192, 320)
            )
            seen.append(run_info)
        until(lambda: run.turns[-1].published.detections.seq >= seen[-1]["seq"])
        by_seq = {turn.published.detections.seq: turn.published for turn in run.turns}
        assert run.get("/camera/rear.jpg").status_code == 404
    assert len({run_info["seq"] for run_info in seen}) == 4
    for run_info in seen:
        published = by_seq[run_info["seq"]]
        assert run_info["count"] == len(published.detections)
        boxes = [[round(v, 1) for v in box] for box in published.detections.boxes_xyxy_px.tolist()]
        assert [box[:4] for box in run_info["boxes"]] == boxes
        assert {box[5] for box in run_info["boxes"]} <= set(LABELS)


@pytest.mark.slow
def test_the_stream_tells_every_published_frame_as_the_json_lines_do(tmp_path: Path) -> None:
    written: list[MessageJson] = []
    sink = CallbackSink(lambda message, _: written.append(message.as_message(LABELS)), wants_pixels=False)
    got: list[tuple[str, dict[str, Any]]] = []
    with (
        live(SCENE + "&frames=40", sinks=(sink,)) as run,
        ASK.stream("GET", run.address + "/events?only=detections,status") as stream,
    ):
        for kind, number, data in events_of(stream.iter_lines()):
            assert kind in ("hello", "detections", "status")
            if kind == "detections":
                got.append((number, data))
            if run.live_state.over and len(got) >= len(run.turns):
                break
    assert [data for _, data in got] == written
    assert [number for number, _ in got] == [f"{run.live_state.boot}:{n + 1}" for n in range(len(got))]


def test_a_viewer_resumes_where_its_connection_broke() -> None:
    live_state = LiveState()
    live_state.describe(FACTS)
    for seq in range(100):
        live_state.on_frame(*turn(seq))
    with open_site("127.0.0.1", 0, None, live_state=live_state) as (_, address):

        def seqs(last_id: str, wanted: int) -> list[int]:
            found = []
            headers = {"last-event-id": last_id}
            with ASK.stream("GET", address + "/events?only=detections", headers=headers) as stream:
                for kind, _, data in events_of(stream.iter_lines()):
                    found += [data["seq"]] if kind == "detections" else []
                    if len(found) == wanted:
                        return found
            raise AssertionError(found)

        assert seqs(f"{live_state.boot}:90", 10) == list(range(90, 100))
        assert seqs("another run:90", 100) == list(range(100))
        for seq in range(100, 1000):  # more than the live_state keeps: what is lost is said
            live_state.on_frame(*turn(seq))
        with ASK.stream(
            "GET", address + "/events?only=detections", headers={"last-event-id": f"{live_state.boot}:90"}
        ) as stream:
            missed = 0
            for kind, _, data in events_of(stream.iter_lines()):
                missed += data["frames"] if kind == "missed" else 0
                if kind == "detections":
                    break
    assert (missed, data["seq"]) == (1000 - 480 - 90, 520)


def test_kinds_of_news_that_do_not_exist_are_refused() -> None:
    with open_site("127.0.0.1", 0, None) as (_, address):
        answer = ASK.get(address + "/events?only=status,pictures")
    assert answer.status_code == 400 and "pictures" in answer.json()["what"]


@pytest.mark.slow
def test_a_hundred_viewers_cost_no_frame_and_too_many_are_turned_away() -> None:
    with live(SCENE) as run:
        run.wait_for(5)
        with ExitStack() as stack:
            limits = httpx.Limits(max_connections=200)
            client = stack.enter_context(httpx.Client(limits=limits, timeout=HANG_S))
            streams = [
                stack.enter_context(client.stream("GET", run.address + "/events")).iter_lines()
                for _ in range(100)
            ]
            for lines in streams:
                kinds = {kind for (kind, _, _), _ in zip(events_of(lines), range(4), strict=False)}
                assert {"hello", "status", "frames"} <= kinds
            assert run.get("/status").json()["viewers"]["now"] == 100
            more = [stack.enter_context(client.stream("GET", run.address + "/events")) for _ in range(30)]
            codes = [one.status_code for one in more]
            assert codes == [200] * 28 + [503] * 2
            before = len(run.turns)
            run.wait_for(before + 20)
            assert run.get("/livez").status_code == 200
        counts_by_camera = run.live_state.run.counts_by_camera() if run.live_state.run else {}
        assert counts_by_camera["front"].balanced
    newest_wins = {"superseded", "no_free_slot"}
    assert set(run.summary.counts.dropped if run.summary else {}) <= {*newest_wins, "stopped"}


def test_a_viewer_that_takes_nothing_is_dropped_and_the_others_are_not() -> None:
    live_state = LiveState()
    live_state.describe(FACTS)
    busy = threading.Event()
    taken = [0]  # frames that the good viewer has: the live_state keeps 480, and it is not to be outrun

    def feed() -> None:
        seq = 0
        while not busy.wait(0.01):
            for _ in range(5 * (seq < taken[0] + 300)):
                live_state.on_frame(*turn(seq, boxes=100))
                seq += 1

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        with open_site("127.0.0.1", 0, None, live_state=live_state) as (_, address):
            host, port = address.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port))) as deaf:
                deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                deaf.sendall(f"GET /events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                with ASK.stream("GET", address + "/events?only=detections") as stream:
                    last = -1
                    for kind, _, data in events_of(stream.iter_lines()):
                        assert kind != "missed"
                        if kind == "detections":
                            assert data["seq"] == last + 1 or last < 0
                            last = data["seq"]
                            taken[0] = last
                            viewers = (
                                ASK.get(address + "/status").json()["viewers"] if last % 200 == 0 else {}
                            )
                            if viewers.get("dropped"):
                                break
                assert viewers == viewers | {"now": 1, "dropped": 1}
    finally:
        busy.set()
        feeder.join()


class Hanging(LiveState):
    """What the page asks the run for never comes: the web thread stands."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.release = threading.Event(), threading.Event()

    @property
    def labels(self) -> tuple[str, ...]:
        self.asked.set()
        self.release.wait(60)
        return super().labels


def test_a_web_thread_that_hangs_delays_no_frame(tmp_path: Path) -> None:
    folder, live_state = picture_folder(tmp_path / "p", 200), Hanging()
    with (
        live(str(folder), live_state=live_state) as run,
        socket.create_connection(
            (run.address.split("/")[2].split(":")[0], int(run.address.rpartition(":")[2]))
        ) as viewer,
    ):
        viewer.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert live_state.asked.wait(HANG_S)
        run.wait_for(200)
        until(lambda: live_state.over)
        with pytest.raises(httpx.TimeoutException):
            ASK.get(run.address + "/livez", timeout=0.3)
        live_state.release.set()
        assert ASK.get(run.address + "/livez").status_code == 200
    assert [turn.published.detections.seq for turn in run.turns] == list(range(200))
    assert run.summary is not None and run.summary.counts.balanced


def test_a_server_that_dies_takes_no_frame_with_it_and_comes_back(tmp_path: Path) -> None:
    with live(str(picture_folder(tmp_path / "p", 100)), busy_ms=2) as run:
        run.wait_for(1)
        web = next(thread for thread in threading.enumerate() if thread.name == "web")
        kill = ctypes.pythonapi.PyThreadState_SetAsyncExc
        assert kill(ctypes.c_ulong(web.ident or 0), ctypes.py_object(SystemExit)) == 1
        run.wait_for(100)
        published: list[int] = []

        def answered() -> bool:
            with suppress(httpx.TransportError):  # the server may die with the request in its hands
                published.append(run.get("/status").json()["frames"]["published"])
            return bool(published)

        until(answered)
        assert published == [100]
        assert [turn.published.detections.seq for turn in run.turns] == list(range(100))


class Swapping(LiveState):
    def __init__(self, swap: Any) -> None:
        super().__init__()
        self._swap = swap

    def on_open(self, run: Any) -> None:
        from dataclasses import replace

        super().on_open(replace(run, swap=self._swap))


def test_a_bundle_is_asked_for_and_refusals_say_why() -> None:
    asked: list[Path] = []
    hold = threading.Event()

    def swap(folder: Path) -> dict[str, Any]:
        asked.append(folder)
        if folder.name == "slow":
            hold.wait(HANG_S)
        if folder.name == "bad":
            raise BundleError("it is broken", seen="a digest", fix="build it again")
        return {"serving": str(folder)}

    with live(SCENE, live_state=Swapping(swap)) as run:
        run.wait_for(1)
        address = run.address + "/bundle"
        good = ASK.post(address, json={"bundle": "/b/good"})
        assert (good.status_code, good.json()) == (200, {"serving": "/b/good"})
        bad = ASK.post(address, json={"bundle": "/b/bad"})
        assert (bad.status_code, bad.json()) == (
            409, {"what": "it is broken", "seen": "a digest", "fix": "build it again"},
        )  # fmt: skip
        slow = threading.Thread(target=lambda: ASK.post(address, json={"bundle": "/b/slow"}))
        slow.start()
        until(lambda: Path("/b/slow") in asked)
        assert ASK.post(address, json={"bundle": "/b/good"}).status_code == 409
        assert run.get("/livez").status_code == 200  # others are answered meanwhile
        hold.set()
        slow.join()
        for body in (b"", b"[]", b"{}", b'{"bundle": 3}', b"x" * 10_000, b"[" * 4000):
            refused = ASK.post(address, content=body)
            assert refused.status_code == 400, body[:20]
        assert ASK.get(address).status_code == 405
    assert asked == [Path("/b/good"), Path("/b/bad"), Path("/b/slow")]


def test_a_run_that_cannot_swap_says_so() -> None:
    with open_site("127.0.0.1", 0, None) as (_, address):
        answer = ASK.post(address + "/bundle", json={"bundle": "/b"})
    assert answer.status_code == 501 and answer.json()["seen"] == "the run is starting"


def test_nothing_of_a_site_stays_behind() -> None:
    before = {thread.name for thread in threading.enumerate()}
    with live(SCENE) as run:
        run.wait_for(2)
        run.get("/camera/front.jpg")
        with ASK.stream("GET", run.address + "/events") as stream:
            next(stream.iter_lines())
    until(lambda: {thread.name for thread in threading.enumerate()} <= before)
    with pytest.raises(httpx.ConnectError):
        run.get("/livez")
