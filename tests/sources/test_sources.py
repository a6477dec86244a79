"""Sources deliver every picture in order, and say in words what they cannot do."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from avq.daemon import source_types
from avq.errors import AvqError, DataError, RequestError, UnreadablePictureError
from avq.hookspecs import FrameSource
from avq.redaction import redact_uri
from avq.sources import open_source
from avq.sources.recorded_video import declared_bytes
from tests.sources.retime import retimed

FRAMES = 40
FORMATS = {"mjpg.avi": "MJPG", "vp8.webm": "VP80", "mp4v.mp4": "mp4v", "vp8.mkv": "VP80"}


def numbered(seq: int) -> np.ndarray:
    """A picture that carries its number as eight black or white blocks."""
    pixels = np.full((96, 128, 3), 128, np.uint8)
    for bit in range(8):
        pixels[:, bit * 16 : bit * 16 + 16] = 255 if seq >> bit & 1 else 0
    return pixels


def number_of(pixels: np.ndarray) -> int:
    return sum(1 << bit for bit in range(8) if pixels[48, bit * 16 + 8, 1] > 127)


def write_video(path: Path, fourcc: str, frames: int = FRAMES) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*fourcc), 25.0, (128, 96))
    if not writer.isOpened():
        pytest.skip(f"this OpenCV cannot write {fourcc}")
    for seq in range(frames):
        writer.write(numbered(seq))
    writer.release()


def opened(uri: str | Path) -> FrameSource:
    return open_source(str(uri), source_types(), open_timeout_ms=20_000, read_timeout_ms=2000)


def numbers(source: FrameSource) -> Iterator[int]:
    """The numbers of the readable pictures."""
    while True:
        try:
            got = source.read()
        except UnreadablePictureError:
            continue
        if got is None:
            break
        yield number_of(got[0])
    source.close()


@pytest.mark.parametrize("name", FORMATS)
def test_a_video_gives_every_frame_in_order(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / name, FORMATS[name])
    source = opened(tmp_path / name)
    assert not source.live
    assert source.fps == pytest.approx(25)
    assert list(numbers(source)) == list(range(FRAMES))


@pytest.mark.parametrize("name", ["mjpg.avi", "vp8.webm", "vp8.mkv"])
def test_a_cut_off_video_delivers_what_is_left_and_then_tells(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / name, FORMATS[name])
    whole = tmp_path / name
    cut = tmp_path / f"cut_{name}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 7 // 10])
    assert declared_bytes(whole) <= whole.stat().st_size
    seen: list[Any] = []
    with pytest.raises(DataError, match=r"ends early: \d+ frames could be read, \d+ are declared") as error:
        seen.extend(numbers(opened(cut)))
    assert 10 <= len(seen) < FRAMES
    assert seen == list(range(len(seen)))
    assert f"{len(seen)} frames could be read" in error.value.what


def test_a_part_of_a_long_recording_starts_late_and_is_whole(tmp_path: Path) -> None:
    write_video(tmp_path / "whole.mkv", "VP80")
    late = tmp_path / "late.mkv"
    late.write_bytes(retimed((tmp_path / "whole.mkv").read_bytes(), lambda ms: ms + 20_000))
    assert list(numbers(opened(late))) == list(range(FRAMES))


def test_a_codec_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.mkv"
    write_video(path, "VP80")
    path.write_bytes(path.read_bytes().replace(b"V_VP8", b"V_VP9"))
    with pytest.raises(DataError, match="no frame that OpenCV can decode") as error:
        opened(path).read()
    assert "VP90" in error.value.seen


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "cannot be read as a video"), (b"no video at all" * 50, "cannot be read as a video")],
)
def test_what_is_no_video_is_told(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x.mp4").write_bytes(content)
    with pytest.raises(DataError, match=said):
        opened(tmp_path / "x.mp4")


@pytest.mark.material
def test_a_real_dashcam_clip(material: Path) -> None:
    source = opened(material / "video" / "udacity_vehicle_test_video.mp4")
    pictures = 0
    while (got := source.read()) is not None:
        assert got[0].shape == (720, 1280, 3)
        pictures += 1
    assert pictures == 38


@pytest.mark.material
def test_a_real_clip_cut_off(material: Path, tmp_path: Path) -> None:
    data = (material / "video" / "udacity_vehicle_test_video.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 6 // 10])
    # Its index lies at the end (not opened) or at the front (ends early).
    with pytest.raises(DataError) as error:
        list(numbers(opened(tmp_path / "cut.mp4")))
    assert "bytes of" in error.value.seen


def test_a_folder_in_natural_order_with_an_unreadable_picture(tmp_path: Path) -> None:
    for seq in (1, 2, 10, 11):
        cv2.imwrite(str(tmp_path / f"frame{seq}.png"), numbered(seq))
    (tmp_path / "frame3.jpg").write_bytes(b"\xff\xd8 cut off")
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden.png").write_bytes(b"")
    source = opened(tmp_path)
    assert list(numbers(source)) == [1, 2, 10, 11]
    assert dict(source.lost) == {"unreadable": 1}  # type: ignore[attr-defined]
    assert "frame3.jpg" in source.remark  # type: ignore[attr-defined]


def test_one_picture_is_a_source(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "one.png"), numbered(77))
    assert list(numbers(opened(tmp_path / "one.png"))) == [77]


def test_a_source_with_no_readable_picture_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pictures"):
        opened(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(DataError, match="none of the pictures can be read"):
        opened(tmp_path).read()


def test_a_scene_is_live_paced_and_repeatable() -> None:
    source = opened("scene://drive?seed=4&fps=100&weather=night&size=160x96&frames=10")
    assert source.live and source.fps == 100
    opened_ns = time.monotonic_ns()
    frames = []
    while (got := source.read()) is not None:
        frames.append(got)
    assert len(frames) == 10
    assert frames[0][0].shape == (96, 160, 3)
    # Only "never early" holds on every machine: a first frame that came late brings the others nearer to it.
    assert all(t_ns >= opened_ns + seq * 10_000_000 for seq, (_, t_ns) in enumerate(frames))
    again = opened("scene://drive?seed=4&fps=100&weather=night&size=160x96&frames=10").read()
    assert again is not None and np.array_equal(again[0], frames[0][0])


@pytest.mark.parametrize(
    ("uri", "error", "said"),
    [
        ("scen://drive", RequestError, "did you mean 'scene'?"),
        ("scene://drve", RequestError, "did you mean 'drive'?"),
        ("scene://drive?sed=1", RequestError, "did you mean 'seed'?"),
        ("scene://drive?weather=nigt", RequestError, "did you mean 'night'?"),
        ("scene://drive?fps=0", RequestError, "a number 0.1..1000"),
        ("scene://drive?fps=fast", RequestError, "a number 0.1..1000"),
        ("scene://drive?seed=1.5", RequestError, "1"),
        ("scene://drive?size=640", RequestError, "WIDTHxHEIGHT"),
        ("scene://drive?size=99999x10000", RequestError, "at most 8192"),
        ("{d}/drvie.mp4", DataError, "did you mean 'drive.mp4'?"),
        ("{d}/nowhere/x.mp4", DataError, "does not exist either"),
        ("{d}/notes.txt", RequestError, ".mp4"),
        ("v4l2:///dev/video987", DataError, "/dev/video"),
    ],
)
def test_wrong_requests_are_told_with_the_nearest_right_one(
    tmp_path: Path, uri: str, error: type[AvqError], said: str
) -> None:
    (tmp_path / "drive.mp4").write_bytes(b"")
    (tmp_path / "notes.txt").write_bytes(b"")
    with pytest.raises(error) as caught:
        opened(uri.format(d=tmp_path))
    assert said in caught.value.fix


def test_passwords_stay_out_of_messages() -> None:
    assert redact_uri("rtsp://driver:s3cret@camera/front") == "rtsp://***@camera/front"
    with pytest.raises(DataError) as caught:
        open_source("rtsp://driver:s3cret@127.0.0.1:9/x", source_types(), open_timeout_ms=500)
    assert "s3cret" not in str(caught.value)


class _Camera(http.server.BaseHTTPRequestHandler):
    """A network camera: ``/file.avi`` is finite, ``/stall`` sends a few MJPEG parts and then hangs."""

    video = b""
    release = threading.Event()

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path == "/file.avi":
            self.send_header("Content-Length", str(len(self.video)))
            self.end_headers()
            self.wfile.write(self.video)
            return
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for seq in range(12):
            jpeg = cv2.imencode(".jpg", numbered(seq))[1].tobytes()
            self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\n")
            self.wfile.write(b"Content-Length: %d\r\n\r\n%s\r\n" % (len(jpeg), jpeg))
        self.wfile.flush()
        self.release.wait(120)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def camera(tmp_path: Path) -> Iterator[str]:
    write_video(tmp_path / "v.avi", "MJPG")
    _Camera.video = (tmp_path / "v.avi").read_bytes()
    _Camera.release.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Camera)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    _Camera.release.set()
    server.shutdown()
    server.server_close()


def test_a_finite_file_behind_http_is_processed_whole(camera: str) -> None:
    source = opened(f"{camera}/file.avi")
    assert not source.live
    assert list(numbers(source)) == list(range(FRAMES))


def test_a_stalled_stream_is_told_within_its_time_out(camera: str) -> None:
    source = opened(f"{camera}/stall")
    assert source.live
    started = time.monotonic()
    seen: list[Any] = []
    with pytest.raises(DataError, match="stopped delivering"):
        seen.extend(numbers(source))
    assert seen == list(range(len(seen)))
    assert len(seen) >= 5
    assert time.monotonic() - started < 25  # asked for 2 s; FFmpeg's own time-out is 30 s
    source.close()
