"""Boxes on pictures, and clips that play."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest

from avq.errors import DataError, MachineError
from avq.render import draw_detections, picture, write_clip
from avq.types import Detections


def seen(*boxes: tuple[float, float, float, float], scores: tuple[float, ...] = ()) -> Detections:
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores or [0.9] * len(boxes), np.float32),
        np.arange(len(boxes), dtype=np.int64),
    )


def grey(rows: int = 240, cols: int = 320) -> np.ndarray:
    return np.full((rows, cols, 3), 128, np.uint8)


def test_boxes_are_drawn_on_a_copy() -> None:
    picture = grey()
    drawn = draw_detections(picture, seen((50, 60, 200, 180)), ["car"])
    assert (picture == 128).all() and drawn.shape == picture.shape
    assert (drawn[120, 48:53] != 128).any(), "the left edge"
    assert (drawn[100:140, 100:150] == 128).all(), "the middle stays visible"


@pytest.mark.parametrize(
    "box", [(-50, -50, 400, 400), (310, 230, 319, 239), (0, 0, 1, 1), (1e9, 1e9, 2e9, 2e9), (9, 9, 5, 5)]
)
def test_boxes_at_and_beyond_the_border_are_no_problem(box: tuple[float, float, float, float]) -> None:
    assert draw_detections(grey(), seen(box), []).shape == (240, 320, 3)


def test_boxes_that_are_not_finite_or_too_faint_are_left_out() -> None:
    faint = seen((float("nan"), 0, 9, 9), (20, 20, 90, 90), scores=(0.9, 0.1))
    assert (draw_detections(grey(), faint, [], min_score=0.3) == 128).all()


def test_tiny_pictures_and_names_beyond_ascii() -> None:
    assert draw_detections(grey(8, 8), seen((1, 1, 6, 6)), ["Fußgänger"]).shape == (8, 8, 3)


def test_names_do_not_cover_better_names() -> None:
    alone = draw_detections(grey(), seen((50, 60, 200, 180), scores=(0.9,)), ["car"])
    crowd = seen(*[(50, 60, 200, 180)] * 6, scores=(0.9, 0.8, 0.7, 0.6, 0.5, 0.4))
    both = draw_detections(grey(), crowd, ["car"] * 6)
    assert (both[40:58, 55:100] == alone[40:58, 55:100]).all()


def test_classes_have_their_own_colours() -> None:
    boxes = [seen((50, 60, 200, 180)), Detections(*cast(Any, [a[1:] for a in _two()]))]
    a, b = (draw_detections(grey(), d, []) for d in boxes)
    assert (a[120, 50] != b[120, 50]).any()


def _two() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    both = seen((0, 0, 1, 1), (50, 60, 200, 180))
    return both.boxes_xyxy_px, both.scores, both.class_ids


def test_a_picture_in_a_page_is_never_enlarged() -> None:
    assert 'width="320" height="240"' in picture(grey())
    assert 'width="880" height="660"' in picture(grey(1200, 1600))


def test_a_clip_is_written_and_read_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new folder" / "drive.webm"
    frames = [np.full((121, 161, 3), 20 * n, np.uint8) for n in range(10)]
    assert write_clip(path, iter(frames), fps=25) == 10
    assert [p.name for p in path.parent.iterdir()] == ["drive.webm"]
    reader = cv2.VideoCapture(str(path))
    shades = []
    while True:
        more, frame = reader.read()
        if not more:
            break
        assert frame.shape == (120, 160, 3)
        shades.append(float(frame.mean()))
    assert len(shades) == 10 and shades == sorted(shades)
    assert reader.get(cv2.CAP_PROP_FPS) == pytest.approx(25)
    assert path.read_bytes()[:4] == b"\x1a\x45\xdf\xa3", "WebM"
    assert capfd.readouterr().err == "", "nothing for the user to worry about"


@pytest.mark.parametrize("fps", [0.5, 10, 29.97, 120])
def test_a_clip_plays_at_the_asked_rate(tmp_path: Path, fps: float) -> None:
    write_clip(tmp_path / "a.webm", (grey() for _ in range(40)), fps=fps)
    reader = cv2.VideoCapture(str(tmp_path / "a.webm"))
    times_ms = []
    while reader.read()[0]:
        times_ms.append(reader.get(cv2.CAP_PROP_POS_MSEC))
    assert len(times_ms) == 40
    assert np.diff(times_ms) == pytest.approx(1000 / fps, abs=1.0)


@pytest.mark.parametrize("fps", [0, -1, float("nan"), 1e6])
def test_a_clip_needs_a_sensible_rate(tmp_path: Path, fps: float) -> None:
    with pytest.raises(DataError, match="frame rate"):
        write_clip(tmp_path / "a.webm", iter([grey()]), fps=fps)


def test_a_clip_needs_frames_of_one_size(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one frame"):
        write_clip(tmp_path / "a.webm", iter([]), fps=25)
    with pytest.raises(DataError, match="frame 1"):
        write_clip(tmp_path / "a.webm", iter([grey(), grey(120, 160)]), fps=25)
    assert list(tmp_path.iterdir()) == []


def test_a_clip_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(MachineError, match="cannot write the clip"):
        write_clip(tmp_path / "file" / "a.webm", iter([grey()]), fps=25)
