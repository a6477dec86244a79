"""One bad picture costs one picture: damaged videos are read to their end, by the service and by a replay alike."""

from __future__ import annotations

import http.server
import os
import random
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from avq.daemon import source_types
from avq.errors import DataError, UnreadablePictureError
from avq.hookspecs import FileSource, FrameSource
from avq.replay.log import EndOfLogError, LoggedFrame
from avq.replay.log_sources import open_log
from avq.sources import open_source

FRAMES = 80
#: File -> encoder options of ffmpeg.
CONTAINERS = {
    "mjpeg.avi": "-c:v mjpeg -q:v 5",
    "mjpeg.mkv": "-c:v mjpeg -q:v 5",
    "h264.mp4": "-c:v libx264 -preset ultrafast -g 20 -bf 2",
    "h264.ts": "-c:v libx264 -preset ultrafast -g 20",
    "mpeg4.mp4": "-c:v mpeg4",
    "vp8.webm": "-c:v libvpx -b:v 500k -deadline realtime",
}
needs_ffmpeg = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="needs ffmpeg and ffprobe"
)


def encode(path: Path, options: str, *, size: str = "160x96", frames: int = FRAMES) -> None:
    source = f"testsrc2=size={size}:rate=25:duration={frames / 25}"
    command = ["ffmpeg", "-nostdin", "-loglevel", "error", "-y", "-f", "lavfi", "-i", source]
    subprocess.run([*command, *options.split(), str(path)], check=True)


def probe(path: Path, *entries: str) -> list[str]:
    command = ["ffprobe", "-v", "quiet", "-select_streams", "v:0", *entries, "-of", "csv=p=0", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def readable(path: Path) -> int:
    """The pictures that ffprobe can decode."""
    return int(probe(path, "-count_frames", "-show_entries", "stream=nb_read_frames")[0].strip(","))


def damage(path: Path, share: float) -> int:
    """Overwrite a share of the packets, never the first, with noise; return how many."""
    rows = [row.split(",") for row in probe(path, "-show_entries", "packet=size,pos")]
    chance, data = random.Random(7), bytearray(path.read_bytes())
    chosen = chance.sample(range(1, len(rows)), max(1, round(share * len(rows))))
    for size, at in ((int(rows[index][0]), int(rows[index][1])) for index in chosen):
        data[at : at + size] = chance.randbytes(size)
    path.write_bytes(data)
    return len(chosen)


def read_all(source: FrameSource) -> tuple[list[np.ndarray], int]:
    """The readable pictures, and how many were not."""
    pictures: list[np.ndarray] = []
    unreadable = 0
    while True:
        try:
            got = source.read()
        except UnreadablePictureError:
            unreadable += 1
            continue
        if got is None:
            return pictures, unreadable
        pictures.append(got[0].copy())


def opened(uri: Path | str) -> FrameSource:
    return open_source(str(uri), source_types(), open_timeout_ms=20_000, read_timeout_ms=2000)


@needs_ffmpeg
@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("name", CONTAINERS)
def test_damaged_pictures_cost_themselves_only(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    encode(path, CONTAINERS[name])
    damaged = damage(path, share)
    good = readable(path)
    source = opened(path)
    pictures, unreadable = read_all(source)
    assert len(pictures) == good
    if name in ("mjpeg.avi", "h264.mp4", "mpeg4.mp4"):  # the other containers lose packets before the decoder
        assert 0 <= damaged - unreadable <= 1  # damage at the very end is the end
        assert isinstance(source, FileSource) and (f"{unreadable} of " in source.remark) == bool(unreadable)
    replayed: list[LoggedFrame] = []
    with pytest.raises(EndOfLogError):
        replayed.extend(open_log(str(path)).frames())
    loaded = [frame.load() is not None for frame in replayed]
    assert (loaded.count(True), loaded.count(False)) == (len(pictures), unreadable)
    assert [frame.seq for frame in replayed] == list(range(len(replayed)))


@needs_ffmpeg
def test_a_codec_that_changes_midway_is_remarked(tmp_path: Path) -> None:
    encode(tmp_path / "a.ts", "-c:v libx264 -preset ultrafast -g 25", frames=50)
    encode(tmp_path / "b.ts", "-c:v mpeg2video -g 25", frames=50)
    joined = tmp_path / "joined.ts"
    joined.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    source = opened(joined)
    assert isinstance(source, FileSource)
    pictures, _ = read_all(source)
    assert 40 <= len(pictures) < 100
    assert re.search(r"about (9|10)\d$", source.remark)


def jpeg(number: int, size_px: tuple[int, int] = (128, 96)) -> bytes:
    noise = np.random.default_rng(number).integers(0, 60, (size_px[1], size_px[0], 3), np.uint8)
    return cv2.imencode(".jpg", noise)[1].tobytes()


def part(data: bytes) -> bytes:
    return b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(data), data)


def stream(bad: bytes) -> list[bytes]:
    """40 pictures; each fourth is replaced by ``bad``."""
    return [part(bad if number % 4 == 3 else jpeg(number)) for number in range(40)]


class _Server(http.server.BaseHTTPRequestHandler):
    parts: dict[str, list[bytes]]

    def do_GET(self) -> None:
        name = self.path.strip("/")
        self.send_response(200)
        if name.endswith((".mp4", ".avi")):
            data = self.parts[name][0]
            self.send_header("Content-Length", str(int(self.parts[name][1])))
            self.end_headers()
            self.wfile.write(data)
            return
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for one in self.parts[name]:
            self.wfile.write(one)
            self.wfile.flush()
            time.sleep(0.01)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def served() -> Iterator[tuple[str, dict[str, list[bytes]]]]:
    """The address of a server, and what it serves by name."""
    parts: dict[str, list[bytes]] = {}
    handler = type("Handler", (_Server,), {"parts": parts})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", parts
    server.shutdown()
    server.server_close()


def until_closed(source: FrameSource) -> tuple[list[np.ndarray], int, DataError]:
    pictures: list[np.ndarray] = []
    unreadable = 0
    while True:
        try:
            got = source.read()
        except UnreadablePictureError:
            unreadable += 1
        except DataError as error:
            return pictures, unreadable, error
        else:
            assert got is not None
            pictures.append(got[0])


@pytest.mark.parametrize("kind", ["noise", "half", "empty"])
def test_bad_pictures_of_a_live_stream_are_counted(
    served: tuple[str, dict[str, list[bytes]]], kind: str
) -> None:
    address, parts = served
    bad = {"noise": random.Random(1).randbytes(3000), "half": jpeg(3)[: len(jpeg(3)) // 2], "empty": b""}
    parts["live"] = stream(bad[kind])
    pictures, unreadable, error = until_closed(opened(f"{address}/live"))
    assert "the other side closed the stream" in error.seen
    if kind == "empty":  # FFmpeg joins an empty part with the next one
        assert len(pictures) >= 20
    else:
        assert (len(pictures), 9 <= unreadable <= 10) == (30, True)


def test_a_live_stream_whose_shape_changes_is_not_stretched(
    served: tuple[str, dict[str, list[bytes]]],
) -> None:
    address, parts = served
    sizes = [(128, 96)] * 5 + [(96, 128)] * 5 + [(64, 48)] * 5
    parts["live"] = [part(jpeg(number, size)) for number, size in enumerate(sizes)]
    pictures, _, _ = until_closed(opened(f"{address}/live"))
    assert [(p.shape[1], p.shape[0]) for p in pictures] == sizes


@needs_ffmpeg
@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_a_transfer_that_breaks_off_is_no_whole_file(
    served: tuple[str, dict[str, list[bytes]]], tmp_path: Path, name: str
) -> None:
    address, parts = served
    options = "-c:v mjpeg" if name.endswith("avi") else "-c:v mpeg4 -movflags +faststart"
    encode(tmp_path / name, options)
    data = (tmp_path / name).read_bytes()
    parts[name] = [data, len(data)]  # type: ignore[list-item]
    assert len(read_all(opened(f"{address}/{name}"))[0]) == FRAMES
    parts[name] = [data[: len(data) * 6 // 10], len(data)]  # type: ignore[list-item]
    source = opened(f"{address}/{name}")
    pictures, _, error = until_closed(source)
    assert 0 < len(pictures) < FRAMES and "ends early" in error.what and "transfer broke off" in error.seen


def test_half_a_picture_is_unreadable_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    (tmp_path / "b.jpg").write_bytes(jpeg(2)[: len(jpeg(2)) // 2])
    source = opened(tmp_path)
    assert len(read_all(source)[0]) == 1
    assert isinstance(source, FileSource) and dict(source.lost) == {"unreadable": 1}


def test_a_name_that_is_not_utf8_is_a_name(tmp_path: Path) -> None:
    for name in (b"caf\xe9.jpg", b"\xff\xfe.jpg"):
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_bytes(jpeg(1))
    assert len(read_all(opened(tmp_path))[0]) == 2


@pytest.mark.parametrize(
    "head", [b"ffconcat version 1.0\nfile 'other.mp4'\n", b"#EXTM3U\n#EXT-X-VERSION:3\n"]
)
def test_lists_of_other_files_are_refused(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "drive.mp4").write_bytes(head)
    with pytest.raises(DataError, match="cannot be read as a video") as error:
        opened(tmp_path / "drive.mp4")
    assert "text" in error.value.seen
