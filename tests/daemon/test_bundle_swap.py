"""Other bundles while frames flow: none lost, each served whole by one bundle, and bad ones refused or taken back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from avq.daemon import ActiveModes, Mode, RunOptions, serve_bundle
from avq.daemon import bundle_swap as swapper
from avq.daemon.bundle_swap import PROBATION_FRAMES, BundleSwapper
from avq.daemon.modes import WARM_UPS
from avq.daemon.observer import NullObserver
from avq.errors import BundleError, MachineError, RefusedError
from avq.sinks import CallbackSink
from avq.types import U8, LatencyBudget, Published, RawOutputs
from tests.daemon.daemon_kit import null_parts

SOURCE = "scene://drive?fps=60&size=96x64"


@dataclass
class Session:
    """A null engine that breaks on its ``breaks_at``-th frame, and knows whether it was closed."""

    breaks_at: int = 0
    asked: int = -WARM_UPS
    closed: bool = False
    engine: str = "null"
    precision: str = "f32"

    def infer(self, tensor: U8) -> RawOutputs:
        assert not self.closed
        self.asked += 1
        if self.breaks_at and self.asked == self.breaks_at:
            raise RuntimeError("the card fell off the bus")
        return null_parts().session.infer(tensor)

    def run(self, feeds: Mapping[str, Any]) -> RawOutputs:
        return self.infer(feeds[""])

    def close(self) -> None:
        self.closed = True


@dataclass
class Shelf:
    """Bundles by the name of their folder: what they do is in it."""

    sessions: list[tuple[str, Session]] = field(default_factory=list)
    configured: str = "configured"

    def prepare(self, path: Path | None) -> ActiveModes:
        name = path.name if path is not None else self.configured
        if name == "damaged":
            raise BundleError("the part 'model.onnx' is damaged", seen="sha256 1, manifest 2")
        session = Session(
            breaks_at={"breaks": 3, "breaks-warm": 1 - WARM_UPS, "breaks-late": 90}.get(name, 0)
        )
        self.sessions.append((name, session))
        parts = replace(null_parts(), session=session, bundle_digest=name)
        if name == "boats":
            parts = replace(parts, labels=("boat",))
        return ActiveModes((Mode(parts),), session.close)


class Loop(NullObserver):
    """Serves on a thread of its own until told to end."""

    def __init__(self) -> None:
        self.shelf, self.kept, self.events = Shelf(), list[Published](), list[Mapping[str, Any]]()
        self._over, self._changed = False, threading.Condition()
        self.error: BaseException | None = None
        self.failed = 0
        self.first = self.shelf.prepare(Path("first"))
        self.swapper = BundleSwapper(self.first, self.shelf.prepare)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self.wait_for(lambda: bool(self.kept))

    def _serve(self) -> None:
        options = RunOptions(
            policy="every", swapper=self.swapper, observer=self, on_event=self._on_message, frames=10**6
        )
        sink = CallbackSink(self._keep, wants_pixels=False)
        try:
            self.summary = serve_bundle(
                self.first.modes,
                sources={"front": SOURCE},
                sinks=[sink],
                budget=LatencyBudget(10**9),
                options=options,
            )
        except BaseException as error:
            self.error = error
        with self._changed:
            self._changed.notify_all()

    def _keep(self, message: Published, _: object) -> None:
        with self._changed:
            self.kept.append(message)
            self._changed.notify_all()

    def _on_message(self, event: Mapping[str, Any]) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def on_tick(self) -> None:
        if self._over:
            raise KeyboardInterrupt

    def wait_for(self, what: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: what() or self.error is not None, 90) and what(), self.error

    def wait_for_frames(self, count: int) -> None:
        there = len(self.kept) + count
        self.wait_for(lambda: len(self.kept) >= there)

    def end(self) -> list[tuple[str, int]]:
        """(bundle, frames) in the order they served; every frame must be there once, but those that failed."""
        self._over = True
        self._thread.join(90)
        self.swapper.close()
        seqs = [message.detections.seq for message in self.kept]
        assert seqs == sorted(set(seqs)) and seqs[-1] + 1 == len(seqs) + self.failed
        assert all(session.closed for _, session in self.shelf.sessions)
        return [
            (name, len(list(run))) for name, run in groupby(message.bundle_digest for message in self.kept)
        ]

    def event_kinds(self) -> list[str]:
        return [event["kind"] for event in self.events if "camera" not in event]


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    monkeypatch.setattr(
        swapper, "_ANSWER_S", 90.0
    )  # on a busy machine thirty frames take longer than ten seconds
    loop = Loop()
    try:
        yield loop
    finally:
        loop.end()


@pytest.mark.slow
def test_a_good_bundle_serves_from_one_frame_to_the_next_and_the_old_one_is_closed(loop: Loop) -> None:
    for name in ("second", "third", "fourth"):
        answer = loop.swapper.swap(Path(name))
        assert answer["swapped"] and answer["settled"] and answer["bundle"] == name
        assert loop.shelf.sessions[-1][1].closed is False
    loop.wait_for(lambda: loop.shelf.sessions[-2][1].closed)
    served = loop.end()
    assert [name for name, _ in served] == ["first", "second", "third", "fourth"]
    assert all(frames >= PROBATION_FRAMES for _, frames in served[1:])
    assert loop.event_kinds() == ["bundle_swapped"] * 3


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("damaged", BundleError, "model.onnx"),
        ("boats", BundleError, "other classes"),
        ("first", RefusedError, "already serves"),
        ("breaks-warm", MachineError, "the card fell off the bus"),
    ],
)
def test_a_bad_bundle_is_refused_and_never_serves(
    loop: Loop, name: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        loop.swapper.swap(Path(name))
    loop.wait_for_frames(5)
    loop.wait_for(lambda: loop.event_kinds() == ["swap_refused"])
    assert {bundle for bundle, _ in loop.end()} == {"first"}


def test_an_engine_that_breaks_on_its_first_frames_gives_way_on_that_very_frame(loop: Loop) -> None:
    with pytest.raises(MachineError, match="rolled back") as caught:
        loop.swapper.swap(Path("breaks"))
    assert "the card fell off the bus" in caught.value.seen
    assert loop.swapper.swap(Path("second"))["bundle"] == "second"
    served = loop.end()
    assert [name for name, _ in served] == ["first", "breaks", "first", "second"]
    assert served[1] == ("breaks", 2)  # the third was served by the bundle before
    assert loop.event_kinds() == ["bundle_swapped", "swap_rolled_back", "bundle_swapped"]


@pytest.mark.slow
def test_after_its_probation_a_failed_frame_costs_that_frame(loop: Loop) -> None:
    assert loop.swapper.swap(Path("breaks-late"))["settled"]
    loop.failed = 1
    loop.wait_for(lambda: any(event["kind"] == "frame_failed" for event in loop.events))
    loop.wait_for_frames(3)


def test_a_reload_takes_what_the_configuration_says_now(loop: Loop) -> None:
    loop.swapper.request_reload()
    loop.wait_for(lambda: bool(loop.kept) and loop.kept[-1].bundle_digest == "configured")
    loop.shelf.configured = "damaged"
    loop.swapper.request_reload()
    loop.wait_for(lambda: "swap_refused" in loop.event_kinds())
    loop.wait_for_frames(3)
    assert [name for name, _ in loop.end()] == ["first", "configured"]


def test_who_asks_while_the_run_ends_is_answered(loop: Loop) -> None:
    loop.end()
    with pytest.raises(MachineError, match="not swapped"):
        loop.swapper.swap(Path("second"))
