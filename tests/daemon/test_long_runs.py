"""Short forms of the long runs in tests/soak: exact books behind a slow consumer, and nothing that grows."""

from __future__ import annotations

from typing import Any

import pytest

from tests.soak.growth import live
from tests.soak.slow_consumer import play


def test_behind_a_consumer_ten_times_too_slow_every_frame_is_accounted_for_by_its_number() -> None:
    played = play(frames=300, fps=100)
    books = played.summary.counts
    assert books.balanced and books.in_flight == 0 and books.dropped.get("superseded", 0) > 0
    assert books.captured == 300 and books.published == len(played.numbers) >= 2
    assert all(seq == drawn for seq, drawn in played.numbers)


@pytest.mark.slow
def test_lost_cameras_and_swapped_bundles_leave_nothing_behind() -> None:
    grown = live(frames=4000, reconnects=5, swaps=4)
    kinds = [event["kind"] for event in grown.summary.events]
    assert grown.summary.counts.balanced and grown.summary.counts.published == 4000
    events: list[Any] = list(grown.summary.events)
    counted = sum(event.get("counts", {}).get("camera_restarted", 0) for event in events)
    assert grown.life.kills >= 4 and kinds.count("camera_restarted") + counted >= 4
    assert kinds.count("bundle_swapped") >= 3
    assert all(grown.after[kind] <= count for kind, count in grown.before.items()), grown.after
    assert grown.life.counts[-1] <= grown.life.counts[1]
    assert grown.mb_grown < 4
