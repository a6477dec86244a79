"""An engine that fails while it serves costs a frame, then the engine, then the fallback, then the run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avq.daemon import ActiveModes, Mode, RunOptions, RunSummary, serve_bundle
from avq.daemon.bundle_swap import BundleSwapper
from avq.daemon.engine_recovery import AMONG_LAST, IN_A_ROW, FailureCounter, close_within
from avq.daemon.modes import WARM_UPS
from avq.daemon.stop_deadline import StopDeadline
from avq.errors import MachineError
from avq.sinks import CallbackSink
from avq.types import U8, LatencyBudget, RawOutputs
from tests.daemon.daemon_kit import null_parts, picture_folder

BUDGET = LatencyBudget(10**9)


def breaks(_: U8) -> RawOutputs:
    raise RuntimeError("the card fell off the bus")


def exits(_: U8) -> RawOutputs:
    raise SystemExit(9)


def out_of_memory(_: U8) -> RawOutputs:
    raise MemoryError


def not_a_number(tensor: U8) -> RawOutputs:
    return {key: np.full_like(value, np.nan) for key, value in null_parts().session.infer(tensor).items()}


def empty(_: U8) -> RawOutputs:
    return {}


@dataclass
class Session:
    """A null engine that answers some of its frames, counted from 1 after the warm-up, by ``fault``."""

    fault: Callable[[U8], RawOutputs] = breaks
    when: Callable[[int], bool] = lambda number: False
    hangs: bool = False
    number: int = -WARM_UPS
    closed: bool = False
    engine: str = "null"
    precision: str = "f32"

    def infer(self, tensor: U8) -> RawOutputs:
        self.number += 1
        if self.number > 0 and self.when(self.number):
            return self.fault(tensor)
        return null_parts().session.infer(tensor)

    def run(self, feeds: Mapping[str, Any]) -> RawOutputs:
        return self.infer(feeds[""])

    def close(self) -> None:
        if self.hangs:
            threading.Event().wait()
        self.closed = True


@dataclass
class Bench:
    """Serves 40 pictures with the first session; later sessions are opened by recovery."""

    folder: Path
    sessions: list[Session]
    fallbacks: list[Session] = field(default_factory=list)

    def modes(self, session: Session) -> ActiveModes:
        parts = replace(null_parts(), session=session)
        return ActiveModes((Mode(parts),), session.close, None, self.reopen)

    def reopen(self) -> ActiveModes:
        self.sessions.pop(0)
        if not self.sessions:
            raise MachineError("the device is gone")
        return self.modes(self.sessions[0])

    def serve(self) -> RunSummary:
        serving = self.modes(self.sessions[0])
        swapper = BundleSwapper(serving, lambda path: serving)
        steps = tuple((f"fallback {n}", lambda s=s: self.modes(s)) for n, s in enumerate(self.fallbacks))
        try:
            return serve_bundle(
                serving.modes,
                sources={"a": str(picture_folder(self.folder, 40))},
                sinks=[CallbackSink(lambda *_: None, wants_pixels=False)],
                budget=BUDGET,
                options=RunOptions(swapper=swapper, fallbacks=steps),
            )
        finally:
            swapper.close()


def kinds(summary: RunSummary) -> list[str]:
    return [e["kind"] for e in summary.events if e["kind"].startswith(("frame_", "engine_"))]


@pytest.mark.parametrize("fault", [breaks, exits, out_of_memory, not_a_number, empty])
def test_one_failed_frame_costs_that_frame(tmp_path: Path, fault: Callable[[U8], RawOutputs]) -> None:
    summary = Bench(tmp_path, [Session(fault, lambda number: number == 14)]).serve()
    assert (summary.counts.published, summary.counts.dropped) == (39, {"failed": 1})
    assert summary.counts.balanced and summary.exit_code == 0
    assert kinds(summary) == ["frame_failed"]


def test_repeated_failures_reopen_the_engine(tmp_path: Path) -> None:
    broken, healthy = Session(breaks, lambda number: number > 10), Session()
    summary = Bench(tmp_path, [broken, healthy]).serve()
    assert summary.counts.dropped == {"failed": IN_A_ROW}
    assert summary.counts.published == 40 - IN_A_ROW and summary.exit_code == 0
    assert kinds(summary) == ["frame_failed", "engine_replaced"]
    assert broken.closed and healthy.closed


def test_then_the_fallback_serves(tmp_path: Path) -> None:
    always = lambda number: number > 10  # noqa: E731
    summary = Bench(tmp_path, [Session(breaks, always)], [Session()]).serve()
    assert (summary.counts.published, summary.exit_code) == (40 - IN_A_ROW, 0)
    assert kinds(summary) == ["frame_failed", "engine_failed", "engine_replaced"]


def test_an_engine_that_never_works_ends_the_run_with_a_summary(tmp_path: Path) -> None:
    always = lambda number: number > 10  # noqa: E731
    summary = Bench(tmp_path, [Session(breaks, always)]).serve()
    assert summary.exit_code == 3 and summary.counts.balanced
    assert (summary.counts.published, summary.counts.dropped["failed"]) == (10, IN_A_ROW)
    assert "the card fell off the bus" in summary.as_json()["engine_failure"]["seen"]


def test_without_anything_to_open_the_run_ends_with_3(tmp_path: Path) -> None:
    parts = replace(null_parts(), session=Session(not_a_number, lambda number: number > 4))
    folder = picture_folder(tmp_path, 20)
    summary = serve_bundle(parts, sources={"a": str(folder)}, sinks=[], budget=BUDGET)
    assert summary.exit_code == 3 and summary.counts.published == 4


def test_an_engine_whose_close_hangs_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from avq.daemon import bundle_swap, engine_recovery

    monkeypatch.setattr(engine_recovery, "CLOSE_S", 0.1)
    monkeypatch.setattr(bundle_swap, "CLOSE_S", 0.1)
    began_s = time.monotonic()
    summary = Bench(tmp_path, [Session(breaks, lambda number: number > 10, hangs=True), Session()]).serve()
    assert summary.exit_code == 0 and summary.counts.published == 40 - IN_A_ROW
    assert time.monotonic() - began_s < 10


def test_failures_in_a_row_and_among_the_last_frames_repeat() -> None:
    counter = FailureCounter()
    assert [counter.on_failure() for _ in range(IN_A_ROW)] == [False] * (IN_A_ROW - 1) + [True]
    counter.restart()
    answers = []
    for _ in range(AMONG_LAST):
        answers.append(counter.on_failure())
        counter.on_success()
    assert answers == [False] * (AMONG_LAST - 1) + [True]


def test_a_cause_is_reported_once_in_a_quarter_of_an_hour() -> None:
    counter, minute_ns = FailureCounter(), 60 * 10**9
    assert [counter.is_new("x", at * minute_ns) for at in (0, 1, 14, 16)] == [True, False, False, True]
    assert counter.is_new("y", 17 * minute_ns)


def test_closing_is_bounded_and_its_errors_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert close_within(lambda: None, 1.0, "x")
    assert not close_within(lambda: time.sleep(30), 0.05, "the hung one")
    assert not close_within(partial(breaks, np.zeros(1, np.uint8)), 1.0, "the broken one")
    assert "the hung one does not close" in caplog.text and "fell off the bus" in caplog.text


def test_a_loop_that_does_not_return_after_a_stop_signal_is_ended() -> None:
    import os
    import signal

    codes: list[int] = []
    drained = threading.Event()
    deadline = StopDeadline(codes.append, 0.05)
    deadline.drain = drained.set
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with deadline.watch():
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(200):
                if codes:
                    break
                time.sleep(0.01)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert codes == [3] and drained.is_set()
