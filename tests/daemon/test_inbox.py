"""The inbox: newest wins or every frame, and books that always add up."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from avq.daemon.inbox import Arrival, Inbox
from avq.types import Frame

PIXELS = np.zeros((2, 2, 3), np.uint8)


def arrival(camera: str, seq: int, released: Counter[tuple[str, int]]) -> Arrival:
    def release() -> None:
        released[(camera, seq)] += 1

    return Arrival(Frame(camera, seq, seq, PIXELS), True, release)


class Driver:
    """Feeds an inbox as a capture process and a loop would, and keeps books of its own."""

    def __init__(self, every: dict[str, bool]) -> None:
        self.inbox = Inbox()
        self.released: Counter[tuple[str, int]] = Counter()
        self.seq = dict.fromkeys(every, 0)
        self.lost = {camera: {"no_free_slot": 0} for camera in every}
        self.newest: dict[str, int] = {}
        self.taken: list[tuple[str, int]] = []
        self.working: list[Arrival] = []
        self.every = every
        for camera, each in every.items():
            self.inbox.open_camera(camera, every=each)

    def capture(self, camera: str, no_slot: bool) -> None:
        seq = self.seq[camera]
        self.seq[camera] += 1
        if no_slot and not self.every[camera]:
            self.lost[camera]["no_free_slot"] += 1
            return
        old = self.inbox.offer(arrival(camera, seq, self.released), dict(self.lost[camera]))
        if old is not None:
            old.release()
        self.newest[camera] = seq

    def take(self) -> None:
        got = self.inbox.take()
        if got is not None:
            self.working.append(got)
            self.taken.append((got.frame.camera, got.frame.seq))
            if not self.every[got.frame.camera]:
                assert got.frame.seq == self.newest[got.frame.camera]

    def finish(self, cause: str | None) -> None:
        if self.working:
            done = self.working.pop(0)
            self.inbox.finished(done.frame.camera, cause)
            done.release()


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("capture"), st.sampled_from("abc"), st.booleans()),
        st.tuples(st.just("take")),
        st.tuples(st.just("finish"), st.sampled_from([None, "failed"])),
    ),
    max_size=120,
)


@settings(max_examples=200)
@given(actions=ACTIONS, every=st.fixed_dictionaries({name: st.booleans() for name in "abc"}))
def test_no_frame_is_lost_or_counted_twice(actions: list[tuple], every: dict[str, bool]) -> None:  # type: ignore[type-arg]
    driver = Driver(every)
    for name, *values in actions:
        getattr(driver, name)(*values)
        assert driver.inbox.counts().balanced
    for camera in every:
        driver.inbox.close_camera(camera, driver.lost[camera])
    for gone in driver.inbox.drop_waiting():
        gone.release()
    while driver.working:
        driver.finish(None)
    account = driver.inbox.counts()
    assert account.balanced and account.in_flight == 0 and driver.inbox.exhausted
    assert account.captured == sum(driver.seq.values())
    assert account.dropped.get("no_free_slot", 0) == sum(
        lost["no_free_slot"] for lost in driver.lost.values()
    )
    announced = sum(driver.seq.values()) - account.dropped.get("no_free_slot", 0)
    assert len(driver.released) == announced and set(driver.released.values()) <= {1}
    for camera, each in every.items():
        seqs = [seq for name, seq in driver.taken if name == camera]
        assert seqs == sorted(set(seqs))
        if each:
            assert seqs == list(range(len(seqs)))


def test_cameras_take_turns() -> None:
    driver = Driver({"a": True, "b": True, "c": False})
    for _ in range(3):
        for camera in "abc":
            driver.capture(camera, False)
    for _ in range(9):
        driver.take()
    assert driver.taken == [("a", 0), ("b", 0), ("c", 2), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_a_replaced_capture_process_counts_its_drops_from_zero() -> None:
    inbox = Inbox()
    inbox.open_camera("a", every=False)
    released: Counter[tuple[str, int]] = Counter()
    inbox.offer(arrival("a", 5, released), {"no_free_slot": 5})
    inbox.close_camera("a")
    inbox.open_camera("a", every=False)
    inbox.offer(arrival("a", 8, released), {"no_free_slot": 2})
    account = inbox.counts()
    assert account.balanced
    assert (account.captured, account.dropped) == (9, {"no_free_slot": 7, "superseded": 1})


def test_an_inbox_is_exhausted_only_when_every_camera_has_ended_and_nothing_waits() -> None:
    driver = Driver({"a": True, "b": True})
    driver.capture("a", False)
    driver.inbox.close_camera("a")
    assert not driver.inbox.exhausted
    driver.inbox.close_camera("b")
    assert not driver.inbox.exhausted
    driver.take()
    assert driver.inbox.exhausted
