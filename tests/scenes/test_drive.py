"""Drives are repeatable, random access, smooth, and refuse what they cannot do."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from avq.errors import RequestError
from avq.scenes import CLASS_NAMES, WEATHERS, Drive, LabelledScene, random_scene


def same(a: LabelledScene, b: LabelledScene) -> bool:
    return (
        a.pixels.tobytes() == b.pixels.tobytes()
        and a.boxes_xyxy_px.tobytes() == b.boxes_xyxy_px.tobytes()
        and a.class_ids.tobytes() == b.class_ids.tobytes()
        and a.track_ids.tobytes() == b.track_ids.tobytes()
    )


@pytest.mark.parametrize("weather", WEATHERS)
def test_a_frame_is_the_same_whenever_and_in_whatever_order_it_is_asked_for(weather: str) -> None:
    in_order = [Drive(5, weather).frame(i) for i in range(4)]
    drive = Drive(5, weather)
    backwards = [drive.frame(i) for i in (3, 2, 1, 0)][::-1]
    assert all(same(a, b) for a, b in zip(in_order, backwards, strict=True))


def test_a_frame_is_the_same_in_another_process() -> None:
    code = (
        "import hashlib; from avq.scenes import random_scene; s = random_scene(7);"
        "print(hashlib.sha256(s.pixels.tobytes() + s.boxes_xyxy_px.tobytes()).hexdigest())"
    )
    once, twice = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    assert once == twice != ""


def test_other_seeds_and_weathers_give_other_pictures() -> None:
    pictures = {
        Drive(seed, weather).frame(30).pixels.tobytes() for seed in (1, 2) for weather in WEATHERS[1:]
    }
    assert len(pictures) == 8


@pytest.mark.parametrize("weather", WEATHERS)
def test_shapes_and_types(weather: str) -> None:
    scene = random_scene(3, weather, 480, 270)
    assert scene.pixels.shape == (270, 480, 3)
    assert scene.pixels.dtype == np.uint8
    count = len(scene.boxes_xyxy_px)
    assert scene.boxes_xyxy_px.shape == (count, 4)
    assert scene.boxes_xyxy_px.dtype == np.float32
    assert scene.class_ids.shape == scene.track_ids.shape == (count,)
    assert scene.class_ids.dtype == np.int64


@pytest.mark.slow
def test_boxes_are_inside_the_picture_and_every_class_occurs() -> None:
    seen: set[int] = set()
    for seed in range(60):
        scene = random_scene(seed)
        boxes = scene.boxes_xyxy_px
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2] <= 640).all() and (boxes[:, 3] <= 360).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= 4).all()
        assert len(np.unique(scene.track_ids)) == len(scene.track_ids)
        seen |= set(scene.class_ids.tolist())
    assert seen == set(range(len(CLASS_NAMES)))


@pytest.mark.parametrize("seed", range(6))
def test_the_same_object_moves_little_from_frame_to_frame(seed: int) -> None:
    drive = Drive(seed, "day")
    before: dict[int, np.ndarray] = {}
    compared = 0
    for index in range(60):
        scene = drive.frame(index)
        now = dict(zip(scene.track_ids.tolist(), scene.boxes_xyxy_px, strict=True))
        for track in before.keys() & now.keys():
            a, b = before[track], now[track]
            # What is close passes quickly: the bound grows with the size on screen.
            size = max(a[2] - a[0], a[3] - a[1])
            moved = np.abs((b[:2] + b[2:]) / 2 - (a[:2] + a[2:]) / 2).max()
            assert moved <= 3.0 + 0.30 * size, (index, track, moved, size)
            compared += 1
        before = now
    assert compared > 100


def test_a_track_keeps_its_class() -> None:
    drive = Drive(4)
    classes: dict[int, int] = {}
    for index in range(0, 300, 10):
        scene = drive.frame(index)
        for track, class_id in zip(scene.track_ids.tolist(), scene.class_ids.tolist(), strict=True):
            assert classes.setdefault(track, class_id) == class_id


def test_time_not_frame_number_moves_the_world() -> None:
    slow, fast = Drive(6, "day", fps=10.0).frame(10), Drive(6, "day", fps=30.0).frame(30)
    assert np.array_equal(slow.boxes_xyxy_px, fast.boxes_xyxy_px)


def test_night_is_dark_and_glare_is_bright() -> None:
    level = {
        weather: np.mean([random_scene(s, weather).pixels.mean() for s in range(4)])
        for weather in WEATHERS[1:]
    }
    assert level["night"] < 0.5 * level["rain"] < level["glare"]


def test_an_unknown_weather_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(RequestError) as caught:
        Drive(0, "nigth")
    assert "did you mean 'night'" in str(caught.value)


@pytest.mark.parametrize("bad", [{"seed": -1}, {"seed": 0, "width_px": 10}, {"seed": 0, "fps": 0.0}])
def test_impossible_drives_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(RequestError):
        Drive(**bad)  # type: ignore[arg-type]


def test_there_is_no_frame_before_the_first() -> None:
    with pytest.raises(RequestError):
        Drive(0).frame(-1)


def test_the_package_is_light() -> None:
    heavy = "print([m for m in ('torch', 'onnx', 'scipy') if m in sys.modules])"
    code = f"import sys, avq.scenes, avq.scenes.dataset; {heavy}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
