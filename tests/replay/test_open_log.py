"""A video is replayed at the times its frames were taken, and its pictures are found again."""

from __future__ import annotations

from pathlib import Path

import pytest

from avq.replay.log import read_pictures
from avq.replay.log_sources import open_log
from tests.sources.retime import retimed
from tests.sources.test_sources import FRAMES, number_of, write_video


@pytest.fixture
def video(tmp_path: Path) -> Path:
    write_video(tmp_path / "drive.mkv", "VP80")
    return tmp_path / "drive.mkv"


def test_the_pictures_of_a_video_are_those_of_the_frames_asked_for(video: Path) -> None:
    wanted = {("camera", 0), ("camera", 7), ("camera", FRAMES - 1)}
    found = read_pictures(open_log(str(video)), wanted)
    assert {key: number_of(pixels) for key, pixels in found.items()} == {key: key[1] for key in wanted}


def test_a_video_without_a_steady_rate_keeps_its_times(video: Path) -> None:
    video.write_bytes(retimed(video.read_bytes(), lambda ms: ms if ms < 400 else 3 * ms))
    log = open_log(str(video))
    frames = log.frames()
    times_ms = [next(frames).arrival_ns / 1e6 for _ in range(FRAMES)]
    frames.close()
    assert times_ms == [40 * n if n < 10 else 120 * n for n in range(FRAMES)]
