"""Which pictures the search compares plans on, and which ones the bundle is judged on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avq.builder.pictures.dataset import Item
from avq.builder.verdict_pictures import ENOUGH, VerdictPictures, VerdictSet, _Division
from avq.types import Detections


def boxes(count: int) -> Detections:
    corners = np.tile(np.array([0, 0, 9, 9], np.float32), (count, 1))
    return Detections(corners, np.full(count, 0.9, np.float32), np.zeros(count, np.int64))


class Collected:
    """A HoldoutBuilder without a model: every picture shows as many boxes as ``each``."""

    def __init__(self, each: int, most: int = 100) -> None:
        self.each, self.most = each, most
        self.items: list[Item] = []

    def __len__(self) -> int:
        return len(self.items)

    @property
    def full(self) -> bool:
        return len(self.items) >= self.most

    @property
    def confident_boxes(self) -> int:
        return self.each * len(self.items)

    def add(self, item: Item) -> None:
        self.items.append(item)

    def build(self) -> Any:
        return Built(tuple(self.items), tuple(boxes(self.each) for _ in self.items))


class Built:
    def __init__(self, items: tuple[Item, ...], found: tuple[Detections, ...]) -> None:
        self.items, self.float_detections = items, found

    def joined(self, other: Built) -> Built:
        return Built(self.items + other.items, self.float_detections + other.float_detections)


def divided(held_out: int, others: int, each: int) -> tuple[Built, VerdictSet, tuple[Item, ...]]:
    items = [Item(Path(f"{n}.png"), f"{n:04}") for n in range(held_out + others)]
    collected: list[Any] = [Collected(each), Collected(each)]
    division = _Division(collected[0], collected[1], items[:held_out], items[held_out:])
    for _ in division.fill():
        pass
    search, own = division.sets()
    return search, own, division.spare  # type: ignore[return-value]


@pytest.mark.parametrize(("held_out", "others"), [(20, 80), (46, 184), (200, 800)])
def test_the_verdict_has_pictures_of_its_own_the_held_out_ones_first(held_out: int, others: int) -> None:
    search, own, spare = divided(held_out, others, 4)
    assert own.firm_boxes >= ENOUGH and not {*own.items} & {*search.items}
    assert int(own.items[0].sha256) == 0 and int(search.items[-1].sha256) < held_out + others
    assert len(own.items) + len(search.items) + len(spare) == held_out + others
    assert 4 * len(search.items) >= 150


def test_too_few_boxes_are_shared() -> None:
    search, own, spare = divided(20, 80, 1)
    assert not own.items and not spare and len(search.items) == 100
    pictures = VerdictPictures(own, spare, search, lambda items: ())  # type: ignore[arg-type]
    (only,) = pictures.stages(searched=True)
    assert only.shared and only.firm_boxes == 100
    (free,) = pictures.stages(searched=False)
    assert not free.shared and free.items == only.items


def test_the_verdict_widens_to_all_pictures_those_of_the_search_last() -> None:
    search, own, spare = divided(200, 800, 4)
    runs: list[int] = []

    def detect(items: Any) -> tuple[Detections, ...]:
        runs.append(len(items))
        return tuple(boxes(4) for _ in items)

    pictures = VerdictPictures(own, spare, search, detect)  # type: ignore[arg-type]
    first, wider, whole = pictures.stages(searched=True)
    assert [s.shared for s in (first, wider, whole)] == [False, False, True]
    assert len(first.items) < len(wider.items) < len(whole.items) == 1000
    assert wider.items[: len(first.items)] == first.items and whole.items[: len(wider.items)] == wider.items
    assert len(list(pictures.stages(searched=True))) == 3 and runs == [len(spare)]


def test_few_boxes_in_each_of_many_pictures_are_no_reason_to_share() -> None:
    search, own, spare = divided(200, 800, 1)
    assert own.items and len(spare) == 800 and search.items
