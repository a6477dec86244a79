"""A run with a page: the real loop on the null engine, on a thread, with the real server on a free port."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from avq.daemon import FrameResult, Mode, RunOptions, RunSummary, serve_bundle
from avq.hookspecs import Sink
from avq.sinks import CallbackSink
from avq.types import Detections, Frame, LatencyBudget, Published, StageTimes
from avq.web import LiveState
from avq.web.live_state import BundleInfo, ModeInfo, RunInfo
from avq.web.server import open_site
from tests.daemon.daemon_kit import LABELS, null_parts

HANG_S = 90.0  # ends a test that hangs; no machine is so busy
ASK = httpx.Client(timeout=HANG_S, verify=False)  # one client: making one costs more than a hundred requests
BUDGET = LatencyBudget(50_000_000)
BUNDLE: BundleInfo = {
    "name": "b.avq",
    "digest": "digest",
    "engine": "null",
    "precision": "f32",
    "input_px": [320, 192],
}
FACTS: RunInfo = {"labels": list(LABELS), "bundle": BUNDLE}
__all__ = ["ASK", "BUDGET", "FACTS", "HANG_S", "Live", "events_of", "live", "message", "turn", "until"]


class EnoughError(Exception):
    """Ends a run from its own thread."""


@dataclass
class Live:
    """A run that goes on while a test looks at it."""

    live_state: LiveState
    address: str
    turns: list[FrameResult] = field(default_factory=list)
    summary: RunSummary | None = None
    stopping: bool = False
    error: BaseException | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)

    def on_result(self, turn: FrameResult) -> None:
        with self.changed:
            self.turns.append(turn)
            self.changed.notify_all()
        if self.stopping:
            raise EnoughError

    def wait_for(self, frames: int, timeout_s: float = HANG_S) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.turns) >= frames, timeout_s), len(self.turns)

    def wait_for_end(self) -> None:
        """The run is over and its sinks have written everything."""
        until(lambda: self.summary is not None or self.error is not None)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return ASK.get(self.address + path, **options)


def until(come: Callable[[], bool]) -> None:
    """Look again until it is so."""
    end_s = time.monotonic() + HANG_S
    while not come():
        assert time.monotonic() < end_s, "it never came"
        time.sleep(0.01)


@contextmanager
def live(
    source: str,
    *,
    live_state: LiveState | None = None,
    token: str | None = None,
    host: str = "127.0.0.1",
    busy_ms: float = 0.0,
    sinks: tuple[Sink, ...] = (),
) -> Iterator[Live]:
    """``source`` served until the block is left or it ends."""
    with open_site(host, 0, token, live_state=live_state) as (written, address):
        run = Live(written, address)
        mode: ModeInfo = {**BUNDLE, "name": "normal", "stride": 1}
        written.describe({**FACTS, "cameras": {"front": source}, "modes": [mode]})
        quiet = CallbackSink(lambda *_: None, wants_pixels=False)

        def serve() -> None:
            try:
                run.summary = serve_bundle(
                    [Mode(null_parts(busy_ms))],
                    sources={"front": source},
                    sinks=sinks or [quiet],
                    budget=BUDGET,
                    options=RunOptions(observer=written, on_result=run.on_result, on_event=written.on_event),
                )
            except EnoughError:
                pass
            except BaseException as error:
                run.error = error

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield run
        finally:
            run.stopping = True
            thread.join(HANG_S)
    assert not thread.is_alive()
    assert run.error is None, run.error


def message(
    seq: int, *, boxes: int = 2, age_ns: int = 1_000_000, camera: str = "front", mode: str = "normal"
) -> Published:
    seen = Detections(
        np.full((boxes, 4), 1.5, np.float32), np.full(boxes, 0.5, np.float32), np.zeros(boxes, np.int64),
        camera, seq, seq * 1000,
    )  # fmt: skip
    return Published(seen, age_ns, 0, age_ns > BUDGET.deadline_ns, mode, "digest")


def turn(seq: int, **options: Any) -> tuple[Frame, FrameResult]:
    """A frame and what the loop made of it."""
    published = message(seq, **options)
    camera = published.detections.camera
    frame = Frame(camera, seq, seq * 1000, np.zeros((4, 4, 3), np.uint8))
    return frame, FrameResult(published, StageTimes(100, 200, 300, 400), None)


def events_of(lines: Iterator[str]) -> Iterator[tuple[str, str, Any]]:
    """(event, id, data) of a server-sent event stream."""
    kind, number = "", ""
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "event":
            kind, number = value, ""
        elif name == "id":
            number = value
        elif name == "data":
            yield kind, number, json.loads(value)
