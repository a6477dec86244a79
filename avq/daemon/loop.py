"""The daemon: cameras in, messages out, until they end or somebody says stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from avq.clock import Clock, SystemClock
from avq.daemon.inbox import SharedInbox
from avq.daemon.ledger import STRIDE
from avq.daemon.messages import CaptureSettings, Policy
from avq.daemon.metrics import RunSummary
from avq.daemon.modes import Mode, as_modes, warmed
from avq.daemon.pipeline import Pipeline, Turn
from avq.daemon.publish import Publisher
from avq.daemon.receiver import Receiver
from avq.daemon.step import Parts
from avq.daemon.supervisor import RestartPolicy
from avq.daemon.watch import RunView, Unwatched, Watcher
from avq.errors import RequestError
from avq.hookspecs import Sink
from avq.types import LatencyBudget

_WAIT_S = 0.05
FAILED = "failed"


@dataclass(frozen=True)
class CameraOptions:
    """How one camera is captured.

    Attributes:
        policy: "auto" (live: newest, files: every frame), "newest" or "every".
        open_timeout_ms, read_timeout_ms: of cameras and streams.
        restarts: how a live camera is brought back.
    """

    policy: Policy = "auto"
    open_timeout_ms: int = 5000
    read_timeout_ms: int = 2000
    restarts: RestartPolicy = field(default_factory=RestartPolicy)


@dataclass(frozen=True)
class RunOptions:
    """How a run goes beyond its sources and sinks.

    Attributes:
        frames: stop after so many published frames, over all cameras.
        policy, open_timeout_ms, read_timeout_ms, restarts: as in CameraOptions, for cameras not named in ``cameras``.
        cameras: camera id -> its own options.
        providers: "module:function" names that give the capture processes their source types.
        on_event: called with every event, on a thread of its own.
        on_turn: called after every frame, on the loop's thread: for tests and progress lines.
        watcher: a page, metrics; asked on the loop's thread.
        signals: let SIGINT and SIGTERM end the run cleanly (main thread only).
    """

    frames: int | None = None
    policy: Policy = "auto"
    providers: tuple[str, ...] = ("avq.daemon.kinds:source_types",)
    open_timeout_ms: int = 5000
    read_timeout_ms: int = 2000
    on_event: Callable[[Mapping[str, Any]], None] | None = None
    on_turn: Callable[[Turn], None] | None = None
    signals: bool = True
    cameras: Mapping[str, CameraOptions] = field(default_factory=dict)
    watcher: Watcher = field(default_factory=Unwatched)
    restarts: RestartPolicy = field(default_factory=RestartPolicy)

    def of(self, camera: str) -> CameraOptions:
        """What holds for one camera."""
        shared = CameraOptions(self.policy, self.open_timeout_ms, self.read_timeout_ms, self.restarts)
        return self.cameras.get(camera, shared)


def serve_bundle(
    work: Parts | Sequence[Mode],
    *,
    sources: Mapping[str, str],
    sinks: Sequence[Sink],
    budget: LatencyBudget,
    options: RunOptions | None = None,
    clock: Clock | None = None,
) -> RunSummary:
    """Serve until every source has ended, ``options.frames`` are published, or SIGINT/SIGTERM comes.

    Args:
        work: the opened bundle, or the modes of a ladder, best first; stays the caller's to close.
        sources: camera id -> URI.
        sinks: opened; closed here, whatever happens.
        budget: what counts as late.

    Raises:
        RequestError, DataError: a file could not be opened or gave no frame at all.
        MachineError: no camera could be opened within its bound of restarts.
        Whatever the engine or decoder raises on a frame.
    """
    settled = options or RunOptions()
    publisher = Publisher(sinks, settled.on_event)
    modes = as_modes(work)
    inbox = SharedInbox()
    with _stopped_by_signals(inbox, settled.signals):
        try:
            _check(modes, sources)
            pipeline = Pipeline(warmed(modes), clock or SystemClock(), budget, publisher)
            restarts = {camera: settled.of(camera).restarts for camera in sources}
            receiver = Receiver(_settings(sources, settled, modes), inbox, restarts)
            try:
                _serve(inbox, pipeline, publisher, receiver, settled)
            finally:
                settled.watcher.ended()
                publisher.hurry()
                receiver.stop()
                inbox.drop_waiting()
                _tell_ends(pipeline, receiver)
        finally:
            reports = publisher.close()
    if receiver.refused is not None:
        raise receiver.refused
    return RunSummary(
        inbox.account(),
        pipeline.judge.misses,
        pipeline.metrics.snapshot(),
        tuple(pipeline.modes),
        tuple(pipeline.events),
        tuple(receiver.failures),
        tuple(reports),
    )


def _check(modes: Sequence[Mode], sources: Mapping[str, str]) -> None:
    specs = (getattr(mode.parts.decoder, "spec", None) for mode in modes)
    if any(getattr(spec, "family", "") == "none" for spec in specs):
        raise RequestError(
            "this bundle does not say how its outputs become boxes",
            seen="decoder 'none'",
            fix="build it again with --decoder NAME; 'avq plugins' lists the families",
        )
    if not sources:
        raise RequestError("there is nothing to look at", seen="no source", fix="add --source URI")


def _settings(
    sources: Mapping[str, str], options: RunOptions, modes: Sequence[Mode]
) -> list[CaptureSettings]:
    """A single source whose every frame counts is read no further than ``frames``."""
    every_one_counts = len(sources) == 1 and all(mode.stride == 1 for mode in modes)
    return [
        CaptureSettings(
            camera=camera,
            uri=uri,
            policy=options.of(camera).policy,
            limit_if_every=options.frames if every_one_counts else None,
            providers=options.providers,
            open_timeout_ms=options.of(camera).open_timeout_ms,
            read_timeout_ms=options.of(camera).read_timeout_ms,
        )
        for camera, uri in sources.items()
    ]


@contextmanager
def _stopped_by_signals(inbox: SharedInbox, wanted: bool) -> Iterator[None]:
    """The first signal asks for a clean end; the second one acts as if we were not here."""
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(_number: int, _stack: object) -> None:
        restore()
        inbox.stop()

    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        restore()


def _serve(
    inbox: SharedInbox, pipeline: Pipeline, publisher: Publisher, receiver: Receiver, options: RunOptions
) -> None:
    published = 0
    run = RunView(pipeline.judge.budget, inbox.accounts, publisher.reports, lambda: receiver.pids)
    options.watcher.opened(run)
    while not inbox.over and published != options.frames:
        if receiver.refused is not None or not publisher.alive:
            return
        options.watcher.beat()
        arrival = inbox.next(_WAIT_S)
        _tell_ends(pipeline, receiver)
        if arrival is None:
            continue
        if not pipeline.wants(arrival.frame):
            inbox.finished(arrival.frame.camera, STRIDE)
            arrival.release()
            continue
        outcome: str | None = FAILED
        try:
            turn = pipeline.process(arrival)
            options.watcher.saw(arrival.frame, turn)
            outcome = None
        finally:
            inbox.finished(arrival.frame.camera, outcome)
            arrival.release()
        published += 1
        if options.on_turn is not None:
            options.on_turn(turn)


def _tell_ends(pipeline: Pipeline, receiver: Receiver) -> None:
    """Turn what became of cameras into events."""
    while (event := receiver.next_event()) is not None:
        pipeline.tell(event)
