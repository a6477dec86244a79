"""What counts as a lost box, and noise in decibel."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avq.compare import iou_matrix
from avq.errors import DataError, ModelError
from avq.measure.fidelity import SqnrMeter, fidelity, sqnr_db
from avq.types import Detections

Row = tuple[int, float, tuple[float, float, float, float]]
CAR: Row = (2, 0.9, (100, 100, 200, 180))


def seen(*rows: Row) -> Detections:
    return Detections(
        np.array([box for _, _, box in rows], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in rows], np.float32),
        np.array([cls for cls, _, _ in rows], np.int64),
    )


def test_the_same_boxes_lose_nothing() -> None:
    same = fidelity([seen(CAR)], [seen(CAR)])
    assert (same.images, same.boxes, same.lost, same.confidence_shift) == (1, 1, 0.0, 0.0)
    assert same.map == pytest.approx(1.0) and same.ap50 == pytest.approx(1.0)


@pytest.mark.parametrize(
    "quantized",
    [
        (3, 0.9, (100, 100, 200, 180)),  # another class
        (2, 0.44, (100, 100, 200, 180)),  # less than half the score
        (2, 0.9, (151, 100, 251, 180)),  # IoU 0.32
    ],
)
def test_a_box_is_lost_by_class_score_or_place(quantized: Row) -> None:
    assert fidelity([seen(CAR)], [seen(quantized)], with_map=False).lost == 1.0


def test_half_the_score_and_half_the_overlap_still_count() -> None:
    weaker = fidelity([seen(CAR)], [seen((2, 0.45, (100, 100, 200, 140)))], with_map=False)
    assert weaker.lost == 0.0
    assert weaker.confidence_shift == pytest.approx(-0.45, abs=1e-6)
    assert math.isnan(weaker.map)


def test_one_box_does_not_stand_for_two() -> None:
    neighbour: Row = (2, 0.8, (120, 100, 220, 180))
    result = fidelity([seen(CAR, neighbour)], [seen((2, 0.9, (110, 100, 210, 180)))], with_map=False)
    assert (result.boxes, result.lost) == (2, 0.5)


def test_the_better_overlap_is_served_first() -> None:
    neighbour: Row = (2, 0.8, (120, 100, 220, 180))
    result = fidelity([seen(CAR, neighbour)], [seen(neighbour, CAR)], with_map=False)
    assert result.lost == 0.0 and result.confidence_shift == 0.0


def test_faint_float_boxes_are_not_looked_for() -> None:
    faint = fidelity([seen((2, 0.49, (0, 0, 9, 9)))], [Detections.none()])
    assert (faint.boxes, faint.lost) == (0, 0.0)
    assert faint.map == 0.0  # but at 0.49 it is truth for the metric


def test_without_any_truth_the_metric_is_no_number() -> None:
    assert math.isnan(fidelity([Detections.none()], [seen(CAR)]).map)


def test_comparing_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="no pictures to compare"):
        fidelity([], [])
    with pytest.raises(DataError, match="different pictures"):
        fidelity([seen(CAR)], [])


corner = st.floats(0, 500, width=32)
side = st.floats(1, 200, width=32)
rows = st.lists(
    st.tuples(st.integers(0, 3), st.floats(0.0625, 1, width=32), corner, corner, side, side), max_size=8
)


@given(rows, st.randoms())
def test_order_of_boxes_does_not_matter(raw: list[tuple[float, ...]], random: object) -> None:
    boxes: list[Row] = [(int(c), s, (x, y, x + w, y + h)) for c, s, x, y, w, h in raw]
    shuffled = list(boxes)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert fidelity([seen(*boxes)], [seen(*shuffled)], with_map=False).lost == 0.0


@given(rows, rows)
def test_lost_share_and_overlap_stay_in_range(a: list[tuple[float, ...]], b: list[tuple[float, ...]]) -> None:
    left, right = (seen(*[(int(c), s, (x, y, x + w, y + h)) for c, s, x, y, w, h in r]) for r in (a, b))
    assert 0.0 <= fidelity([left], [right], with_map=False).lost <= 1.0
    overlap = iou_matrix(left.boxes_xyxy_px, right.boxes_xyxy_px)
    assert overlap.shape == (len(a), len(b)) and np.all((overlap >= 0) & (overlap <= 1 + 1e-9))


def test_noise_at_one_percent_is_forty_decibel() -> None:
    signal = np.full((1, 8), 2.0, np.float32)
    assert sqnr_db(signal, signal * 1.01) == pytest.approx(40.0, abs=0.01)
    assert sqnr_db(signal, signal) == math.inf
    assert sqnr_db(signal * 0, signal) == -math.inf


def test_streaming_equals_all_at_once() -> None:
    rng = np.random.default_rng(0)
    clean, noisy = rng.normal(size=(2, 6, 50)).astype(np.float32)
    meter = SqnrMeter()
    for a, b in zip(clean, noisy, strict=True):
        meter.add({"out": a}, {"out": b})
    assert meter.images == 6
    assert meter.result_db()["out"] == pytest.approx(sqnr_db(clean, noisy))


def test_nan_names_the_output_and_the_model() -> None:
    good, bad = np.ones(4, np.float32), np.array([1, np.nan, np.inf, 1], np.float32)
    with pytest.raises(ModelError, match=r"'boxes' of the model under test(.|\n)*2 of 4"):
        SqnrMeter().add({"boxes": good}, {"boxes": bad})
    with pytest.raises(ModelError, match="'boxes' of the reference model"):
        SqnrMeter().add({"boxes": bad}, {"boxes": good})


def test_outputs_that_do_not_line_up_are_refused() -> None:
    with pytest.raises(DataError, match="same outputs"):
        SqnrMeter().add({"a": np.ones(2)}, {"b": np.ones(2)})
    with pytest.raises(DataError, match="shape of output"):
        SqnrMeter().add({"a": np.ones(2)}, {"a": np.ones((2, 1))})
    with pytest.raises(DataError, match="no outputs"):
        SqnrMeter().result_db()
