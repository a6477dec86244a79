"""The daemon with real capture processes: what it publishes, how it counts, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import msgspec
import numpy as np
import psutil
import pytest

from avq.daemon import (
    CameraOptions,
    FrameResult,
    RestartPolicy,
    RunOptions,
    RunSummary,
    serve_bundle,
    sink_types,
)
from avq.daemon.capture import CaptureProcess
from avq.daemon.capture_protocol import Captured, CaptureSettings, framed
from avq.errors import DataError, MachineError, PluginError, RequestError
from avq.recording import LogReader
from avq.sinks import CallbackSink, open_sink
from avq.types import Frame, LatencyBudget, Published
from tests.daemon.daemon_kit import LABELS, null_parts, open_descriptors, picture_folder

ROOT = Path(__file__).resolve().parents[2]
BUDGET = LatencyBudget(50_000_000)
HANG_S = 90  # ends a test that hangs; no machine is so busy
#: What a busy machine may add: an interpreter that took long to start, frames that were late.
BUSY = {"camera_stalled", "camera_resumed", "alert_raised", "alert_cleared"}
STRANGE = RunOptions(
    providers=("tests.daemon.strange_sources:types",), restarts=RestartPolicy(reconnect=False)
)


@pytest.fixture(autouse=True)
def nothing_left_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process, no zombie and no descriptor may outlive a run."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    before, others = open_descriptors(), children()  # other tests of this process may have some for long
    yield
    assert [child for child in children() if child not in others] == []
    left = {fd: name for fd, name in open_descriptors().items() if before.get(fd) != name}
    assert not [name for name in left.values() if "memfd" in name or "pipe" in name], left


def children() -> list[psutil.Process]:
    """Of this process, the youngest last."""
    return sorted(psutil.Process().children(), key=lambda child: (child.create_time(), child.pid))


def run(
    sources: dict[str, str], options: RunOptions | None = None, busy_ms: float = 0.0
) -> tuple[RunSummary, list[Published]]:
    kept: list[Published] = []
    sink = CallbackSink(lambda message, _: kept.append(message), wants_pixels=False)
    summary = serve_bundle(null_parts(busy_ms), sources=sources, sinks=[sink], budget=BUDGET, options=options)
    return summary, kept


def kinds_of(summary: RunSummary) -> list[str]:
    """Kinds of the events that no busy machine makes."""
    return [event["kind"] for event in summary.events if event["kind"] not in BUSY]


def seqs(kept: list[Published], camera: str = "front") -> list[int]:
    return [message.detections.seq for message in kept if message.detections.camera == camera]


def test_a_folder_is_processed_frame_by_frame(tmp_path: Path) -> None:
    got: list[tuple[int, int]] = []

    def keep(message: Published, frame: Frame | None) -> None:
        assert frame is not None
        got.append((message.detections.seq, int(frame.pixels[0, 0, 0])))

    folder = picture_folder(tmp_path / "p", 60)
    summary = serve_bundle(
        null_parts(1.0), sources={"front": str(folder)}, sinks=[CallbackSink(keep)], budget=BUDGET
    )
    assert got == [(seq, seq) for seq in range(60)]
    assert (summary.counts.captured, summary.counts.published, summary.counts.dropped) == (60, 60, {})
    assert summary.counts.balanced and summary.exit_code == 0
    assert summary.modes == ("normal",)


@pytest.mark.slow
def test_a_run_whose_sinks_all_fail_goes_on_and_asks_to_be_started_again(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "p", 200)

    def served(*places: str) -> RunSummary:
        sinks = [open_sink(place, sink_types(), labels=LABELS) for place in places]
        return serve_bundle(null_parts(5.0), sources={"front": str(folder)}, sinks=sinks, budget=BUDGET)

    alone = served("jsonl:/dev/full")
    assert alone.counts.published == 200 and alone.counts.balanced  # a full disk may pass
    assert alone.exit_code == MachineError.exit_code
    beside = served("jsonl:/dev/full", str(tmp_path / "o.jsonl"))
    assert (beside.counts.published, beside.exit_code) == (200, 0)
    assert "No space left" in beside.sinks[0].error


def test_an_unreadable_picture_is_a_counted_drop_and_an_event(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "p", 10)
    (folder / "0004.png").write_bytes(b"broken")
    (folder / "0009.png").write_bytes(b"broken")
    summary, kept = run({"front": str(folder)})
    assert seqs(kept) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert summary.counts.dropped == {"unreadable": 2}
    assert (summary.counts.captured, summary.counts.balanced) == (10, True)
    assert kinds_of(summary) == ["camera_remark"]
    assert "0004.png" in next(event["reason"] for event in summary.events if event["kind"] == "camera_remark")
    assert [message.dropped_since_last for message in kept] == [0, 0, 0, 0, 1, 0, 0, 0]


def test_a_cut_off_video_is_served_as_far_as_it_goes_and_the_run_tells(tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    for seq in range(50):
        writer.write(np.full((48, 64, 3), seq, np.uint8))
    writer.release()
    data = (tmp_path / "v.avi").read_bytes()
    (tmp_path / "v.avi").write_bytes(data[: len(data) // 2])
    summary, kept = run({"front": str(tmp_path / "v.avi")})
    assert seqs(kept) == list(range(len(kept))) and 5 <= len(kept) < 50
    assert summary.counts.balanced and summary.exit_code == 3
    assert isinstance(summary.failures[0].error, DataError)
    assert f"{len(kept)} frames could be read" in summary.failures[0].error.what


@pytest.mark.slow
@pytest.mark.material
def test_a_real_dashcam_clip_is_published_whole(material: Path, tmp_path: Path) -> None:
    log = tmp_path / "run.mcap"
    sinks = [open_sink(str(path), sink_types(), labels=LABELS) for path in (tmp_path / "o.jsonl", log)]
    clip = str(material / "video" / "udacity_vehicle_test_video.mp4")
    summary = serve_bundle(null_parts(), sources={"front": clip}, sinks=sinks, budget=BUDGET)
    assert (summary.counts.captured, summary.counts.published) == (38, 38)
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [line["seq"] for line in lines] == list(range(38))
    assert set(lines[0]) >= {
        "camera",
        "seq",
        "t_capture_ns",
        "age_ms",
        "late",
        "mode",
        "bundle",
        "detections",
    }
    assert set(lines[0]["detections"][0]) == {"label", "score", "box_xyxy_px"}
    again, kept = run({"front": str(log)})
    assert again.counts.published == 38 and seqs(kept) == list(range(38))
    with LogReader(log) as reader:
        topics = {record.topic for record in reader}
    assert "/avq/timing" in topics


def test_a_slow_engine_on_a_live_source_drops_by_cause_and_ends_with_the_newest() -> None:
    summary, kept = run({"front": "strange://flood"}, STRANGE, busy_ms=150)
    account = summary.counts
    assert account.balanced and account.in_flight == 0
    assert account.captured == 150
    assert set(account.dropped) <= {"superseded", "no_free_slot"}
    assert sum(account.dropped.values()) > 30  # a frame every 2 ms, an answer every 150 ms
    assert sum(m.dropped_since_last for m in kept) + len(kept) == kept[-1].detections.seq + 1
    gaps = np.diff(seqs(kept))
    assert (gaps > 0).all()
    # Nothing newer than the last one was there to be taken: what came after it found no free slot.
    assert 149 - kept[-1].detections.seq <= account.dropped.get("no_free_slot", 0)


def test_every_frame_of_a_live_source_when_asked() -> None:
    summary, kept = run(
        {"front": "scene://drive?frames=40&fps=200&size=96x64"}, RunOptions(policy="every"), busy_ms=10
    )
    assert seqs(kept) == list(range(40))
    assert summary.counts.dropped == {}


@pytest.mark.slow
def test_each_camera_may_have_its_own_policy() -> None:
    options = RunOptions(providers=STRANGE.providers, cameras={"front": CameraOptions(policy="every")})
    summary, kept = run({"front": "strange://flood", "rear": "strange://flood"}, options, busy_ms=10)
    assert seqs(kept, "front") == list(range(150))
    assert len(seqs(kept, "rear")) < 150 and seqs(kept, "rear") == sorted(seqs(kept, "rear"))
    assert (summary.counts.captured, summary.counts.balanced) == (300, True)


def test_the_newest_of_a_file_when_asked_is_paced_like_a_camera(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "p", 20)
    started = time.monotonic()
    summary, kept = run({"front": str(folder)}, RunOptions(policy="newest"), busy_ms=250)
    assert time.monotonic() - started >= 19 / 30
    assert summary.counts.captured == 20 and summary.counts.balanced
    assert summary.counts.dropped["superseded"] >= 1 and len(kept) < 20


def test_frames_limits_a_file_without_reading_further(tmp_path: Path) -> None:
    summary, kept = run({"front": str(picture_folder(tmp_path / "p", 30))}, RunOptions(frames=7))
    assert seqs(kept) == list(range(7))
    assert (summary.counts.captured, summary.counts.dropped) == (7, {})


def test_frames_limits_a_live_source_and_what_waited_is_counted() -> None:
    summary, kept = run({"front": "scene://drive?fps=200&size=96x64"}, RunOptions(frames=9), busy_ms=10)
    assert len(kept) == 9
    assert summary.counts.balanced and summary.counts.in_flight == 0


def test_a_killed_capture_process_is_noticed_and_the_books_stay_exact(tmp_path: Path) -> None:
    def kill_after_ten(turn: FrameResult) -> None:
        if turn.published.detections.seq == 10:
            children()[-1].kill()

    folder = picture_folder(tmp_path / "p", 400)
    summary, kept = run({"front": str(folder)}, RunOptions(on_result=kill_after_ten), busy_ms=1)
    assert 11 <= len(kept) < 400 and seqs(kept) == list(range(len(kept)))
    assert summary.counts.balanced and summary.counts.in_flight == 0
    (failure,) = summary.failures
    assert isinstance(failure.error, MachineError) and summary.exit_code == 3
    assert "killed by signal 9" in failure.error.seen
    assert kinds_of(summary) == ["camera_failed"]


def test_one_killed_camera_does_not_stop_the_other(tmp_path: Path) -> None:
    def kill_rear(turn: FrameResult) -> None:
        seen = turn.published.detections
        if seen.camera == "rear" and seen.seq == 5:
            children()[-1].kill()  # started last; the other camera's process may have ended by now

    front, rear = picture_folder(tmp_path / "f", 80), picture_folder(tmp_path / "r", 400)
    summary, kept = run({"front": str(front), "rear": str(rear)}, RunOptions(on_result=kill_rear), busy_ms=1)
    assert seqs(kept, "front") == list(range(80))
    assert len(seqs(kept, "rear")) < 400
    assert [failure.camera for failure in summary.failures] == ["rear"]
    assert summary.counts.balanced


def test_a_crashing_decoder_kills_its_own_process_only() -> None:
    summary, kept = run({"front": "strange://crash"}, STRANGE)
    assert len(kept) >= 1 and summary.counts.balanced
    assert "killed by signal 11" in summary.failures[0].error.seen


def test_a_plugin_source_that_raises_is_named() -> None:
    summary, kept = run({"front": "strange://raise"}, STRANGE)
    error = summary.failures[0].error
    assert len(kept) >= 1 and isinstance(error, PluginError)
    assert "a plugin's bug" in error.what and "strange_sources.py" in error.seen


def test_a_source_that_gives_no_bgr_picture_is_told_what_it_gave() -> None:
    summary, kept = run({"front": "strange://grey"}, STRANGE)
    error = summary.failures[0].error
    assert len(kept) >= 1 and isinstance(error, DataError)
    assert error.seen == "shape (16, 16), dtype uint8"


def test_a_capture_process_that_talks_nonsense_is_ended() -> None:
    summary, kept = run({"front": "strange://babble"}, STRANGE)
    assert len(kept) >= 1 and summary.counts.balanced
    assert isinstance(summary.failures[0].error, MachineError)
    assert "unreadable message" in summary.failures[0].error.what


def test_what_came_before_the_nonsense_in_the_same_read_is_heard() -> None:
    settings = CaptureSettings("front", "strange://hang", providers=STRANGE.providers)
    process = CaptureProcess(settings)
    own_fd, (process.announce_fd, told_fd) = process.announce_fd, os.pipe()
    try:
        told = Captured(0, 1, 5, 16, 16, {})
        os.write(told_fd, framed(told) + b"\x05\0\0\0babble")
        messages = process.read_messages()
        assert messages is not None and next(messages) == told
        with pytest.raises(msgspec.MsgspecError):
            next(messages)
    finally:
        os.close(told_fd)
        os.close(own_fd)
        process.close()


def test_a_hung_source_cannot_hold_up_the_end() -> None:
    options = RunOptions(providers=STRANGE.providers, frames=1)
    started = time.monotonic()
    summary, _ = run({"front": "strange://hang"}, options)
    assert time.monotonic() - started < 600  # the source hangs for an hour
    assert summary.counts.balanced and summary.failures == ()


@pytest.mark.parametrize("name", ["growing", "noisy"])
def test_pictures_may_grow_and_libraries_may_print(name: str) -> None:
    options = RunOptions(providers=STRANGE.providers, frames=20, policy="every")
    summary, kept = run({"front": f"strange://{name}"}, options)
    assert seqs(kept) == list(range(20)) and summary.counts.balanced
    if name == "growing":
        sizes = [message.detections.boxes_xyxy_px.max() for message in kept]
        assert sizes == sorted(sizes) and sizes[-1] > 8 * sizes[0]


@pytest.mark.slow
def test_a_source_that_cannot_be_opened_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file or folder"):
        run({"front": str(tmp_path / "missing.mp4")})
    with pytest.raises(RequestError, match="no source opens"):
        run({"front": "scen://drive", "rear": "scene://drive"})
    with pytest.raises(RequestError, match="no source given"):
        run({})


def test_a_bundle_without_a_decoder_is_not_served(tmp_path: Path) -> None:
    from dataclasses import replace

    closed = []

    class Watched(CallbackSink):
        def close(self) -> None:
            closed.append(True)

    parts = replace(null_parts(), decoder=None)
    with pytest.raises(RequestError, match="no decoder"):
        serve_bundle(parts, sources={"a": "scene://drive"}, sinks=[Watched(lambda *_: None)], budget=BUDGET)
    assert closed == [True]


class Daemon:
    """The driver in a process group of its own."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.daemon.serve_driver", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def lines(self, count: int) -> list[str]:
        assert self.process.stdout is not None
        return [self.process.stdout.readline() for _ in range(count)]

    def end(self) -> tuple[int, list[str], str]:
        out, err = self.process.communicate(timeout=HANG_S)
        return self.process.returncode, out.splitlines(), err


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["terminate", "interrupt the group"])
def test_a_signal_ends_the_daemon_cleanly(tmp_path: Path, whom: str) -> None:
    log = tmp_path / "run.mcap"
    daemon = Daemon("scene://drive?fps=60&size=160x96", "5", str(log))
    first = daemon.lines(10)
    if whom == "terminate":
        daemon.process.terminate()
    else:
        os.killpg(daemon.process.pid, signal.SIGINT)
    code, rest, err = daemon.end()
    assert (code, err) == (0, "")
    summary, frames = json.loads(rest[-1]), len(first) + len(rest) - 1
    assert summary["published"] == frames
    assert summary["captured"] == frames + sum(summary["dropped"].values()) + summary["in_flight"]
    assert summary["in_flight"] == 0 and summary["failures"] == []
    with LogReader(log) as reader:
        images = sum(record.topic == "/camera/front/image" for record in reader)
    missed = {sink["name"]: sink["missed"] for sink in summary["sinks"]}
    assert images + missed["RecorderSink"] == frames and reader.damage == ""


@pytest.mark.slow
def test_a_signal_while_the_engine_warms_up_ends_cleanly_too() -> None:
    daemon = Daemon("scene://drive?fps=60&size=160x96", "400")  # two warm-ups of 0.4 s
    while not _catches_sigterm(daemon.process.pid):
        time.sleep(0.01)
    daemon.process.terminate()
    code, rest, err = daemon.end()
    assert (code, err) == (0, "")
    assert json.loads(rest[-1])["in_flight"] == 0


def _catches_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("uri", ["scene://drive?fps=60&size=160x96", "strange://hang"])
def test_a_killed_daemon_takes_its_capture_process_along(uri: str) -> None:
    daemon = Daemon(uri, "5")
    daemon.lines(1)
    (child,) = psutil.Process(daemon.process.pid).children()
    daemon.process.kill()
    daemon.end()
    _, alive = psutil.wait_procs([child], timeout=HANG_S)
    assert alive == []


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_the_run(tmp_path: Path) -> None:
    daemon = Daemon("scene://drive?fps=100&size=160x96", "1")
    daemon.lines(2)
    assert daemon.process.stdout is not None
    daemon.process.stdout.close()
    assert daemon.process.wait(HANG_S) != -signal.SIGKILL


def test_the_daemon_starts_light() -> None:
    code = (
        "import time, numpy, pluggy; t = time.process_time(); import avq.daemon;"
        "print(time.process_time() - t); import sys; print(*{m.partition('.')[0] for m in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, modules = done.stdout.splitlines()
    heavy = {"onnx", "matplotlib", "scipy", "torch", "openvino", "onnxruntime", "pydantic", "rich", "mcap"}
    assert not heavy & set(modules.split())
    assert float(seconds) < 5.0  # of processor time; usually 0.03
