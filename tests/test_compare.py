"""Differences between two runs are found and named; order is no difference."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avq.compare import Tolerance, assign, compare_detections
from avq.errors import DataError
from avq.types import Detections
from tests.tensor_differences import compare_tensors

Box = tuple[float, float, float, float, float, int]

corner = st.floats(0, 500, width=32)
side = st.floats(0, 200, width=32)
boxes_of_a_frame = st.lists(
    st.tuples(corner, corner, side, side, st.floats(0, 1, width=32), st.integers(0, 3)), max_size=8
)


def seen(boxes: list[Box], seq: int = 0, camera: str = "front") -> Detections:
    return Detections(
        np.array([[x, y, x + w, y + h] for x, y, w, h, _, _ in boxes], np.float32).reshape(-1, 4),
        np.array([b[4] for b in boxes], np.float32),
        np.array([b[5] for b in boxes], np.int64),
        camera,
        seq,
    )


CAR: Box = (100, 50, 80, 40, 0.9, 2)
VAN: Box = (300, 50, 80, 40, 0.6, 2)


def test_boxes_closer_than_their_overlap_can_tell_pair_with_their_own() -> None:
    near = [(0.0, 0.0, 1.0, 3.0, 0.0, 0), (0.0, 2.0**-52, 1.0, 3.0, 0.0, 0)]
    assert compare_detections([seen(near)], [seen(near[::-1])]).identical


@given(boxes_of_a_frame, st.randoms(use_true_random=False))
def test_permuting_boxes_is_no_difference(boxes: list[Box], rng: random.Random) -> None:
    shuffled = list(boxes)
    rng.shuffle(shuffled)
    assert compare_detections([seen(boxes)], [seen(shuffled)]).identical


@given(boxes_of_a_frame.filter(bool), st.data())
def test_one_box_moved_by_a_pixel_is_found(boxes: list[Box], data: st.DataObject) -> None:
    moved = list(boxes)
    index = data.draw(st.integers(0, len(boxes) - 1))
    x, *rest = moved[index]
    moved[index] = (x + 1.0, *rest)  # type: ignore[assignment]
    result = compare_detections([seen(boxes)], [seen(moved)], Tolerance(box_px=0.5))
    assert not result.identical
    assert all(d.field in ("box_xyxy_px", "box", "score", "class_id") for d in result.differences)


@given(boxes_of_a_frame, boxes_of_a_frame)
def test_comparison_is_symmetric_in_what_is_missing(a: list[Box], b: list[Box]) -> None:
    forth = compare_detections([seen(a)], [seen(b)]).differences
    back = compare_detections([seen(b)], [seen(a)]).differences
    lone = [sum(d.field == "box" and d.a is None for d in ds) for ds in (forth, back)]
    assert lone[0] - sum(d.field == "box" and d.b is None for d in forth) == len(b) - len(a)
    assert sum(lone) == sum(d.field == "box" for d in forth) == sum(d.field == "box" for d in back)


def test_a_moved_box_is_named_with_both_places() -> None:
    moved = (101, 50, 80, 40, 0.9, 2)
    [found] = compare_detections([seen([VAN, CAR], 7)], [seen([moved, VAN], 7)]).differences
    assert (found.frame, found.camera, found.field) == (7, "front", "box_xyxy_px")
    assert found.a == [100, 50, 180, 90] and found.b == [101, 50, 181, 90]
    assert found.note == "1 px apart"
    assert json.loads(json.dumps(found.as_dict()))["field"] == "box_xyxy_px"


def test_tolerances_forgive_just_so_much() -> None:
    near = [seen([(100.4, 50, 80, 40, 0.895, 2)])]
    assert compare_detections([seen([CAR])], near, Tolerance(box_px=0.5, score=0.01)).identical
    strict = compare_detections([seen([CAR])], near, Tolerance(box_px=0.1, score=0.001))
    assert [d.field for d in strict.differences] == ["box_xyxy_px", "score"]


def test_another_class_is_one_difference_and_a_lost_box_another() -> None:
    bus = (100, 50, 80, 40, 0.9, 5)
    found = compare_detections([seen([CAR, VAN])], [seen([bus])]).differences
    assert [(d.field, d.a, d.b) for d in found[:1]] == [("class_id", 2, 5)]
    assert found[1].field == "box" and found[1].a["box_xyxy_px"] == [300, 50, 380, 90] and found[1].b is None


def test_the_same_class_is_preferred_over_better_overlap() -> None:
    a = seen([CAR])
    b = seen([(100, 50, 80, 40, 0.9, 5), (105, 50, 80, 40, 0.9, 2)])
    assert assign(a, b, 0.5) == [(0, 1)]


def test_cameras_and_frames_are_not_mixed_up() -> None:
    a = [seen([CAR], 0, "left"), seen([VAN], 0, "right"), seen([CAR], 1, "left")]
    b = [seen([VAN], 0, "right"), seen([CAR], 0, "left")]
    result = compare_detections(a, b)
    [found] = result.differences
    assert (found.camera, found.frame, found.field, found.a, found.b) == ("left", 1, "frame", "1 boxes", None)
    assert (result.frames, result.boxes) == (3, 5)


@pytest.mark.parametrize("field", [0, 4])
def test_nan_differs_even_from_itself(field: int) -> None:
    broken: list[Any] = list(CAR)
    broken[field] = math.nan
    result = compare_detections([seen([tuple(broken)])], [seen([tuple(broken)])], Tolerance(1e9, 1e9))
    assert not result.identical


def test_comparing_nothing_fails() -> None:
    with pytest.raises(DataError, match="no frames to compare"):
        compare_detections([], [])
    with pytest.raises(DataError, match="no tensor elements"):
        compare_tensors({}, {})
    with pytest.raises(DataError, match="no tensor elements"):
        compare_tensors({"x": np.zeros((0, 4))}, {"x": np.zeros((0, 4))})


def test_a_frame_given_twice_is_refused() -> None:
    with pytest.raises(DataError, match="second run has a frame twice"):
        compare_detections([seen([CAR])], [seen([CAR]), seen([])])


def test_the_worst_element_of_a_tensor_is_named() -> None:
    a: dict[str, Any] = {"boxes": np.zeros((2, 3), np.float32), "same": np.ones(2)}
    b: dict[str, Any] = {"boxes": np.array([[0, 0.5, 0], [0, 0, 2]], np.float32), "same": np.ones(2)}
    [found] = compare_tensors(a, b, atol=0.1, frame=3, camera="front")
    assert (found.frame, found.camera, found.field, found.a, found.b) == (3, "front", "boxes[1,2]", 0.0, 2.0)
    assert found.note == "2 of 6 values differ, worst by 2"
    assert compare_tensors(a, b, atol=2.0) == ()


def test_tensors_missing_misshapen_or_nan_differ() -> None:
    one = {"x": np.array([1.0, np.nan]), "y": np.ones(2), "z": np.ones(2)}
    two = {"x": np.array([1.0, np.nan]), "y": np.ones((1, 2))}
    found = {d.field: d for d in compare_tensors(one, two, atol=1e9)}
    assert set(found) == {"x[1]", "y", "z"}
    assert found["y"].note == "another shape" and found["z"].b is None
    assert compare_tensors({"x": np.array([np.inf, 1])}, {"x": np.array([np.inf, 1])}) == ()
    assert compare_tensors({"x": np.array([np.inf])}, {"x": np.array([-np.inf])}, atol=1e9, rtol=0.1)


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20), st.data())
def test_any_changed_element_is_found(values: list[float], data: st.DataObject) -> None:
    a = np.array(values, np.float32)
    b = a.copy()
    index = data.draw(st.integers(0, len(values) - 1))
    b[index] += 1.0
    [found] = compare_tensors({"t": a}, {"t": b}, atol=0.5)
    assert found.field == f"t[{index}]"
