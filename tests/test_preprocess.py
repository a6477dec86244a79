"""Pictures into the network's input and boxes back out of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avq.errors import ConfigError, DataError, RequestError
from avq.preprocess import (
    PRESETS,
    Preprocessor,
    letterbox_window,
    spec_from_json,
    spec_named,
    spec_text,
    spec_to_json,
)
from avq.types import Frame, PreprocessSpec


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_a_letterboxed_picture_lies_in_the_middle_of_its_padding_in_rgb() -> None:
    pixels = picture(200, 100)
    tensor = Preprocessor(PreprocessSpec(width_px=64, height_px=64, pad_value=114)).prepare(pixels).tensor
    assert tensor.shape == (1, 3, 64, 64)
    assert tensor.dtype == np.uint8
    resized = cv2.resize(pixels, (64, 32), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(tensor[0, :, 16:48], resized[..., ::-1].transpose(2, 0, 1))
    assert np.all(tensor[0, :, :16] == 114)
    assert np.all(tensor[0, :, 48:] == 114)


def test_top_left_stretch_and_bgr() -> None:
    pixels = picture(100, 200)
    top_left = PreprocessSpec(width_px=64, height_px=64, anchor="top-left", pad_value=7, channel_order="BGR")
    tensor = Preprocessor(top_left).prepare(pixels).tensor
    np.testing.assert_array_equal(tensor[0, :, :, :32], cv2.resize(pixels, (32, 64)).transpose(2, 0, 1))
    assert np.all(tensor[0, :, :, 32:] == 7)
    stretch = PreprocessSpec(width_px=64, height_px=32, resize="stretch", channel_order="BGR")
    stretched = Preprocessor(stretch).prepare(pixels).tensor
    np.testing.assert_array_equal(stretched[0], cv2.resize(pixels, (64, 32)).transpose(2, 0, 1))


def test_padding_is_painted_anew_when_the_picture_size_changes() -> None:
    prepare = Preprocessor(PRESETS["yolov8"](64, 64))
    fresh = Preprocessor(PRESETS["yolov8"](64, 64))
    for size in ((200, 100), (100, 200), (64, 64), (300, 20)):
        pixels = picture(*size)
        np.testing.assert_array_equal(prepare.prepare(pixels).tensor, fresh.prepare(pixels).tensor)
        fresh = Preprocessor(PRESETS["yolov8"](64, 64))


def test_the_tensor_is_borrowed_unless_copied() -> None:
    prepare = Preprocessor(PRESETS["yolov8"](32, 32))
    kept = prepare.prepare(picture(32, 32, 1), copy=True).tensor
    borrowed = prepare.prepare(picture(32, 32, 1)).tensor
    prepare.prepare(picture(32, 32, 2))
    assert not np.array_equal(borrowed, kept)
    assert np.array_equal(kept, Preprocessor(prepare.spec).prepare(picture(32, 32, 1)).tensor)


def test_frames_and_pixels_are_alike_and_views_are_taken() -> None:
    pixels = picture(60, 40)
    prepare = Preprocessor(PRESETS["yolox"](32, 32))
    first = prepare.prepare(Frame("front", 0, 0, pixels), copy=True)
    assert first.image_size_px == (60, 40)
    np.testing.assert_array_equal(first.tensor, prepare.prepare(pixels).tensor)
    mirrored = prepare.prepare(pixels[:, ::-1], copy=True).tensor
    np.testing.assert_array_equal(mirrored, prepare.prepare(pixels[:, ::-1].copy()).tensor)


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_no_picture_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(DataError):
        Preprocessor(PRESETS["yolox"](32, 32)).prepare(bad)


specs = st.builds(
    PreprocessSpec,
    width_px=st.integers(8, 200),
    height_px=st.integers(8, 200),
    resize=st.sampled_from(["letterbox", "stretch"]),
    anchor=st.sampled_from(["center", "top-left"]),
    pad_value=st.integers(0, 255),
    channel_order=st.sampled_from(["RGB", "BGR"]),
    scale=st.floats(1e-4, 2),
    mean=st.tuples(*[st.floats(-200, 200)] * 3),
    std=st.tuples(*[st.floats(0.01, 200)] * 3),
)


@given(specs, st.integers(1, 300), st.integers(1, 300))
def test_the_picture_s_corners_map_back_exactly(spec: PreprocessSpec, width: int, height: int) -> None:
    pixels = np.full((height, width, 3), 255, np.uint8)
    given_ = Preprocessor(PreprocessSpec(**{**spec_to_json(spec), "pad_value": 0})).prepare(pixels)
    ys, xs = np.nonzero(given_.tensor[0].min(axis=0) == 255)
    corners = np.array([[xs.min(), ys.min(), 1], [xs.max() + 1, ys.max() + 1, 1]], np.float64)
    np.testing.assert_allclose(corners @ given_.model_to_image.T, [[0, 0], [width, height]], atol=1e-9 * 300)


@given(specs, st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=3))
def test_pictures_of_any_sizes_in_a_row_are_letterboxed_as_plain_code_does(
    spec: PreprocessSpec, sizes: list[tuple[int, int]]
) -> None:
    prepare = Preprocessor(spec)
    for seed, (width, height) in enumerate([size for size in sizes for _ in range(2)]):
        pixels = picture(width, height, seed)
        x, y, w, h = letterbox_window(spec, width, height)
        padded = np.full((spec.height_px, spec.width_px, 3), spec.pad_value, np.uint8)
        padded[y : y + h, x : x + w] = cv2.resize(pixels, (w, h), interpolation=cv2.INTER_LINEAR)
        planes = padded if spec.channel_order == "BGR" else padded[..., ::-1]
        np.testing.assert_array_equal(prepare.prepare(pixels).tensor[0], planes.transpose(2, 0, 1))


@given(specs)
def test_specs_survive_json(spec: PreprocessSpec) -> None:
    assert spec_from_json(json.dumps(spec_to_json(spec))) == spec


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": 3}, "width_px"),
        ({"width_px": 0}, "width_px"),
        ({"width_px": True}, "width_px"),
        ({"scale": 0}, "scale"),
        ({"scale": "1/255"}, "scale"),
        ({"std": [1, 0, 1]}, "std"),
        ({"mean": [1, 2]}, "mean"),
        ({"pad_value": 256}, "pad_value"),
        ({"channel_order": "GBR"}, "RGB"),
        ({"resize": "fit"}, "letterbox"),
    ],
)
def test_wrong_json_is_refused_with_what_is_wanted(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        spec_from_json({"width_px": 8, "height_px": 8} | change, where="p.json")
    assert "p.json" in error.value.what
    assert said in str(error.value)


def test_names_and_files(tmp_path: Path) -> None:
    assert spec_named("yolox", 416, 320) == PRESETS["yolox"](416, 320)
    file = tmp_path / "p.json"
    file.write_text('{"channel_order": "BGR", "scale": 1}')
    spec = spec_named(str(file), 416, 320)
    assert (spec.width_px, spec.height_px, spec.channel_order, spec.scale) == (416, 320, "BGR", 1.0)
    file.write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        spec_named(str(file), 416, 320)
    with pytest.raises(RequestError) as error:
        spec_named("yolo8", 416, 320)
    assert "yolov8" in error.value.fix


def test_every_preset_gives_a_spec_of_the_asked_size() -> None:
    for name, preset in PRESETS.items():
        spec = preset(96, 64)
        assert (spec.width_px, spec.height_px) == (96, 64), name
        assert spec_from_json(spec_to_json(spec)) == spec


def bytes_less(mean: float, std: float) -> dict[str, Any]:
    return {"scale": 1.0, "mean": (mean,) * 3, "std": (std,) * 3}


LESS_CAFFE = {"scale": 1.0, "mean": (104.0, 117.5, 123.0)}


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("center-letterbox-114,RGB,0..1", {}),
        ("stretch,RGB,mean=127,std=128", {"resize": "stretch", **bytes_less(127.0, 128.0)}),
        ("crop,BGR,-1..1", {"resize": "crop", "channel_order": "BGR", **bytes_less(127.5, 127.5)}),
        (
            "top-left-letterbox-0,RGB,scale=1/255,std=0.5",
            {"anchor": "top-left", "pad_value": 0, "std": (0.5,) * 3},
        ),
        ("stretch,BGR,mean=104/117.5/123", {"resize": "stretch", "channel_order": "BGR", **LESS_CAFFE}),
    ],
)
def test_a_spec_is_written_on_the_command_line(text: str, settings: dict[str, Any]) -> None:
    spec = PreprocessSpec(width_px=64, height_px=32, **settings)
    assert spec_named(text, 64, 32) == spec
    assert spec_text(spec) == text


@given(
    st.builds(
        PreprocessSpec,
        width_px=st.just(64),
        height_px=st.just(32),
        resize=st.just("letterbox"),
        anchor=st.sampled_from(["center", "top-left"]),
        pad_value=st.integers(0, 255),
        channel_order=st.sampled_from(["RGB", "BGR"]),
        scale=st.floats(1e-6, 1e6),
        mean=st.tuples(*[st.floats(-1e6, 1e6)] * 3),
        std=st.tuples(*[st.floats(1e-6, 1e6)] * 3),
    )
)
def test_every_spec_survives_its_text(spec: PreprocessSpec) -> None:
    assert spec_named(spec_text(spec), 64, 32) == spec


def test_every_preset_survives_its_text() -> None:
    for preset in PRESETS.values():
        spec = preset(64, 32)
        shown = spec_named(spec_text(spec), 64, 32)
        unused = {"anchor": spec.anchor, "pad_value": spec.pad_value} if spec.resize == "stretch" else {}
        assert replace(shown, **unused) == spec  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("letterbox,RGB,0..1", "letterbox"),
        ("center-letterbox-256,RGB,0..1", "256"),
        ("stretch,GRB,0..1", "GRB"),
        ("stretch,RGB", "numbers ''"),
        ("stretch,RGB,0..2", "0..2"),
        ("stretch,RGB,mean=1/2", "mean=1/2"),
        ("stretch,RGB,mean=nan", "nan"),
        ("stretch,RGB,means=1", "means=1"),
        ("stretch,RGB,std=0", "positive"),
    ],
)
def test_a_wrong_text_names_the_part(text: str, seen: str) -> None:
    with pytest.raises(RequestError, match="not a preprocessing") as error:
        spec_named(text, 64, 32)
    assert seen in error.value.seen
    assert "GEOMETRY,ORDER,NUMBERS" in error.value.fix


def test_a_centre_crop_keeps_the_aspect_and_maps_back() -> None:
    pixels = picture(200, 100)
    prepared = Preprocessor(PreprocessSpec(width_px=64, height_px=64, resize="crop")).prepare(pixels)
    middle = cv2.resize(np.ascontiguousarray(pixels[:, 50:150]), (64, 64), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(prepared.tensor[0], middle[..., ::-1].transpose(2, 0, 1))
    np.testing.assert_allclose(prepared.model_to_image @ [[0, 64], [0, 64], [1, 1]], [[50, 150], [0, 100]])
