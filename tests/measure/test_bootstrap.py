"""The resampled metric is the COCO metric, and luck is told from a real difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avq.errors import DataError
from avq.measure.accuracy import bootstrap_interval, evaluate
from avq.measure.labels import LabelledImage, Labels
from avq.types import Detections

box = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(5, 40), st.integers(5, 40))
labelled = st.lists(st.tuples(box, st.integers(0, 1), st.booleans()), max_size=4)
detected = st.lists(st.tuples(box, st.integers(0, 1), st.integers(1, 9)), max_size=5)


def corners(boxes: list[tuple[int, int, int, int]]) -> np.ndarray:
    return np.array([[x, y, x + w, y + h] for x, y, w, h in boxes], np.float32).reshape(-1, 4)


def truth(pictures: list[list[tuple[tuple[int, int, int, int], int, bool]]]) -> Labels:
    images = {
        n: LabelledImage(
            n,
            f"{n}.jpg",
            (100, 100),
            corners([b for b, _, _ in rows]),
            np.array([c for _, c, _ in rows], np.int64),
            np.array([i for _, _, i in rows], bool),
        )
        for n, rows in enumerate(pictures)
    }
    return Labels(Path("labels.json"), images, ("person", "car"), {0: 0, 1: 1})


def run(pictures: list[list[tuple[tuple[int, int, int, int], int, int]]]) -> dict[int, Detections]:
    return {
        n: Detections(
            corners([b for b, _, _ in rows]),
            np.array([s / 10 for _, _, s in rows], np.float32),
            np.array([c for _, c, _ in rows], np.int64),
        )
        for n, rows in enumerate(pictures)
    }


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(labelled, detected), min_size=1, max_size=4))
def test_on_all_pictures_once_it_is_the_coco_metric(pictures: list[tuple[list[Any], list[Any]]]) -> None:
    labels, found = truth([gold for gold, _ in pictures]), run([rows for _, rows in pictures])
    nothing = {n: Detections.none() for n in found}
    if all(image.ignore.all() for image in labels.images.values()):
        with pytest.raises(DataError, match="hold no box"):
            evaluate(labels, found)
        with pytest.raises(DataError, match="hold no box"):
            bootstrap_interval(labels, nothing, found, resamples=1)
        return
    expected = evaluate(labels, found).map
    assert bootstrap_interval(labels, nothing, found, resamples=1).difference == pytest.approx(
        expected, abs=1e-9
    )


def scattered(shift_px: float, count: int = 60) -> tuple[Labels, dict[int, Detections]]:
    rng = np.random.default_rng(3)
    places = [(int(x), int(y), 30, 30) for x, y in rng.integers(0, 60, (count, 2))]
    labels = truth([[(place, n % 2, False)] for n, place in enumerate(places)])
    jitter = rng.normal(0, 2, (count, 1)).astype(np.float32) + np.float32(shift_px)
    found = {
        n: Detections(corners([p]) + jitter[n], np.array([0.9], np.float32), np.array([n % 2]))
        for n, p in enumerate(places)
    }
    return labels, found


def test_a_real_loss_excludes_zero_and_none_includes_it() -> None:
    labels, good = scattered(0.0)
    _, worse = scattered(4.0)
    loss = bootstrap_interval(labels, good, worse, resamples=200)
    assert loss.low <= loss.difference <= loss.high < 0.0
    same = bootstrap_interval(labels, good, good, resamples=50)
    assert (same.low, same.difference, same.high) == (0.0, 0.0, 0.0)
    assert bootstrap_interval(labels, good, worse, resamples=200) == loss, "the same seed, the same interval"


def test_different_pictures_are_refused() -> None:
    labels, found = scattered(0.0, count=4)
    with pytest.raises(DataError, match="1 pictures are in one run only"):
        bootstrap_interval(labels, found, {n: d for n, d in found.items() if n})
    with pytest.raises(DataError, match="no picture"):
        bootstrap_interval(labels, {}, {})
