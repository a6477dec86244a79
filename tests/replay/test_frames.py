"""Decoding ahead: in order, bounded, and what goes wrong is raised where it happened."""

from __future__ import annotations

import threading
from collections.abc import Generator
from functools import partial

import numpy as np
import pytest

from avq.replay.log import AHEAD, LoggedFrame, load_ahead


def frames(count: int, loaded: list[int], fail_at: int = -1) -> Generator[LoggedFrame, None, None]:
    def load(index: int) -> np.ndarray:
        loaded.append(index)
        if index == fail_at:
            raise ValueError("picture 3")
        return np.full((2, 2, 3), index, np.uint8)

    for index in range(count):
        yield LoggedFrame("front", index, index, index, partial(load, index))


@pytest.mark.parametrize("workers", [1, 3])
def test_pictures_come_in_order(workers: int) -> None:
    got = list(load_ahead(frames(50, []), workers=workers))
    assert [(frame.seq, int(np.asarray(pixels)[0, 0, 0])) for frame, pixels in got] == [
        (n, n) for n in range(50)
    ]


def test_no_more_than_asked_for_is_decoded_ahead() -> None:
    loaded: list[int] = []
    before = set(threading.enumerate())
    running = load_ahead(frames(500, loaded), workers=2)
    for _ in range(3):
        next(running)
    threading.Event().wait(0.2)  # the pool would have run away by now
    assert len(loaded) <= 3 + AHEAD + 2
    running.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()


def test_an_error_is_raised_at_its_place() -> None:
    running = load_ahead(frames(9, [], fail_at=3), workers=2)
    assert [next(running)[0].seq for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="picture 3"):
        next(running)
