"""Sets that calibrate: distinct pictures are counted, 16-bit files are read by the bits that their values have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from avq.builder import build
from avq.builder.pictures.dataset import (
    open_calibrating_set,
    open_pictures,
    open_set,
    read_picture,
    variety_of,
)
from avq.builder.pictures.variety import MIN_DISTINCT, Variety, require_distinct, variety
from avq.builder.request import check
from avq.commands.evaluate import evaluate
from avq.errors import DataError
from avq.plugins import PluginHost
from avq.progress import Silent
from avq.scenes import builtin_detector_path
from avq.sources.files import PictureSource
from avq.types import U8, Recipe

ROOT = Path(__file__).parents[3]
ROAD_SCENES = ROOT / "calibration_data" / "road_scenes"


class Messages(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def scenes() -> list[U8]:
    files = sorted(ROAD_SCENES.glob("*.jpg"))[:12]
    return [np.asarray(cv2.imread(str(file)), np.uint8) for file in files]


def write(folder: Path, pictures: list[np.ndarray], suffix: str = ".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(pictures):
        assert cv2.imwrite(str(folder / f"{number:03}{suffix}"), pixels)
    return folder


def variants(picture: U8) -> Iterator[np.ndarray]:
    """One scene, 20 times: qualities, brightness, contrast, gamma, noise, size, mirror image."""
    for quality in (10, 15, 20, 40, 80):
        _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
        yield np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))
    for contrast, brightness in ((0.5, 0), (0.8, 0), (1.2, 0), (1.0, 30), (1.0, 60), (0.7, 40)):
        yield cv2.convertScaleAbs(picture, alpha=contrast, beta=brightness)
        yield cv2.convertScaleAbs(picture[:, ::-1], alpha=contrast, beta=brightness)
    yield (255 * (picture / 255.0) ** 0.6).astype(np.uint8)
    yield np.clip(picture + np.random.default_rng(0).normal(0, 8, picture.shape), 0, 255).astype(np.uint8)
    yield cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def grey(pictures: list[np.ndarray]) -> list[U8]:
    return [np.asarray(cv2.cvtColor(p, cv2.COLOR_BGR2GRAY), np.uint8) for p in pictures]


def test_variants_of_one_picture_are_one_scene(scenes: list[U8]) -> None:
    for picture in scenes[:4]:
        found = variety(grey(list(variants(picture))))
        assert (found.pictures, found.distinct) == (20, 1), found


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (20, 120, 200)])
def test_pictures_of_one_colour_show_nothing(colour: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    flat = [np.full((360, 640, 3), colour, np.uint8) for _ in range(10)]
    for number, picture in enumerate(flat):
        picture[0, 0] = number  # other bytes, same content
    noisy = [np.clip(p + rng.normal(0, 6, p.shape), 0, 255).astype(np.uint8) for p in flat]
    assert variety(grey([*flat, *noisy])) == Variety(20, 20, 0)


def test_scenes_are_distinct() -> None:
    assert variety_of(open_set(ROAD_SCENES)) == Variety(64, 0, 0)


@pytest.mark.slow
def test_real_pictures_are_distinct_unless_they_are_copies(material: Path) -> None:
    """One street picture is there twice, once with a blurred background."""
    for name, near in (("calibration/coco100", 0), ("street/images", 1)):
        found = variety_of(open_set(material / name))
        assert (found.one_colour, found.near_identical) == (0, near), (name, found)


@pytest.mark.slow
def test_frames_of_one_drive_a_second_apart_are_distinct(material: Path) -> None:
    capture = cv2.VideoCapture(str(material / "video" / "udacity_solidWhiteRight.mp4"))
    frames = [capture.read()[1] for _ in range(200)][::25]
    assert variety(grey(frames)).distinct == len(frames) == 8


def test_a_set_of_seven_scenes_is_refused_and_of_eight_taken(scenes: list[U8], tmp_path: Path) -> None:
    require_distinct(tmp_path, variety(grey(list(scenes[:MIN_DISTINCT]))))
    copies = [*scenes[: MIN_DISTINCT - 1], *variants(scenes[0])]
    with pytest.raises(DataError, match="too few distinct pictures") as refusal:
        require_distinct(tmp_path, variety(grey(copies)))
    assert "7 of 27 pictures are distinct: 0 show one colour, 20 are nearly the same" in refusal.value.seen
    assert "at least 8" in refusal.value.fix


def test_a_clean_set_has_nothing_to_report() -> None:
    assert Variety(20, 0, 0).summary() == ""
    with pytest.raises(DataError) as refusal:
        require_distinct(Path("few"), Variety(3, 0, 0))
    assert refusal.value.seen == "3 pictures"


@pytest.mark.parametrize("kind", ["black", "near"])
def test_a_build_that_calibrates_refuses_what_shows_too_little(
    kind: str, scenes: list[U8], tmp_path: Path
) -> None:
    black = [np.full((360, 640, 3), number // 4, np.uint8) for number in range(20)]
    for number, picture in enumerate(black):
        picture[0, 0] = number
    folder = write(tmp_path / kind, black if kind == "black" else list(variants(scenes[0])))
    with pytest.raises(DataError, match="too few distinct pictures"):
        build(recipe(folder, tmp_path, "static"), PluginHost(), Silent())
    with pytest.raises(DataError, match="too few distinct pictures"):
        open_calibrating_set(folder, Silent())


def recipe(folder: Path, tmp_path: Path, strategy: str) -> Recipe:
    return Recipe(
        model=builtin_detector_path(), output=tmp_path / "b", data=folder, strategy=strategy, target="cpu"
    )


def test_a_float_build_calibrates_nothing_so_the_set_is_reported_only(
    scenes: list[U8], tmp_path: Path
) -> None:
    folder = write(tmp_path / "near", list(variants(scenes[0])))
    messages = Messages()
    opened = open_pictures(recipe(folder, tmp_path, "float"), messages)
    assert opened.variety == Variety(20, 0, 19)
    assert [line for line in messages.lines if "1 of 20 pictures are distinct" in line]
    host = PluginHost()
    calibrating = {
        name: check(recipe(folder, tmp_path, name), host).calibrates for name in ("float", "qat", "static")
    }
    assert calibrating == {"float": False, "qat": False, "static": True}


# 16-bit files.


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".ppm"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_16_bit_files_are_read_as_the_8_bit_pictures_they_hold(
    scenes: list[U8], tmp_path: Path, bits: int, suffix: str
) -> None:
    """The set decides: a dark picture alone would have fewer bits."""
    pictures = [scenes[0] // 16, scenes[1], scenes[2]]
    folder = write(tmp_path / "deep", [p.astype(np.uint16) << (bits - 8) for p in pictures], suffix)
    found = open_set(folder)
    assert any(
        f"3 of 3 pictures are 16-bit files, read as {bits}-bit values" in line for line in found.messages
    )
    for item, expected in zip(sorted(found.items, key=lambda i: i.path), pictures, strict=True):
        np.testing.assert_array_equal(read_picture(item), expected)
    source = PictureSource().open(str(folder), open_timeout_ms=1000, read_timeout_ms=1000)
    for expected in pictures:
        got = source.read()
        assert got is not None
        np.testing.assert_array_equal(got[0], expected)


def test_16_bit_grey_and_8_bit_files_stand_in_one_set(scenes: list[U8], tmp_path: Path) -> None:
    deep = cv2.cvtColor(scenes[0], cv2.COLOR_BGR2GRAY)
    folder = write(tmp_path / "set", [scenes[1]])
    assert cv2.imwrite(str(folder / "thermal.tiff"), deep.astype(np.uint16) << 6)
    found = {item.path.name: read_picture(item) for item in open_set(folder).items}
    np.testing.assert_array_equal(found["000.png"], scenes[1])
    np.testing.assert_array_equal(found["thermal.tiff"], cv2.cvtColor(deep, cv2.COLOR_GRAY2BGR))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [12, 14])
def test_an_evaluation_is_the_same_on_deep_pictures(scenes: list[U8], tmp_path: Path, bits: int) -> None:
    flat = write(tmp_path / "flat", list(scenes[:8]))
    deep = write(tmp_path / "deep", [p.astype(np.uint16) << (bits - 8) for p in scenes[:8]])
    model, messages = builtin_detector_path(), Messages()
    settings: dict[str, Any] = {"subject": model, "reference": model, "labels": None, "maps": ()}
    expected = evaluate(data=flat, host=PluginHost(), report=Silent(), **settings)
    actual = evaluate(data=deep, host=PluginHost(), report=messages, **settings)
    assert actual["mean_confidence"] == expected["mean_confidence"]
    assert any(f"read as {bits}-bit values" in line for line in messages.lines)
