"""The daemon: cameras in, messages out, until they end or somebody says stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from avq.clock import Clock, SystemClock
from avq.daemon.capture_protocol import CaptureSettings
from avq.daemon.inbox import STRIDE, Arrival, SharedInbox
from avq.daemon.memory import MemoryWatch
from avq.daemon.metrics import RunSummary
from avq.daemon.modes import ActiveModes, Mode, as_modes, warmed
from avq.daemon.observer import RunView
from avq.daemon.options import RunOptions
from avq.daemon.pipeline import FrameResult, Pipeline
from avq.daemon.publisher import Publisher
from avq.daemon.receiver import Receiver
from avq.daemon.step import Parts
from avq.daemon.systemd import WatchdogHeartbeat
from avq.decoders import DetectionDecoder
from avq.errors import RequestError
from avq.hookspecs import Sink
from avq.types import LatencyBudget

# Signals of a run: end cleanly, or read the configuration again.


@contextmanager
def handle_signals(stop: Callable[[], None], reload: Callable[[], None] | None) -> Iterator[None]:
    """SIGINT and SIGTERM call ``stop`` once; a second one acts as if we were not here. SIGHUP calls ``reload``.

    Both functions must be safe in a signal handler. Nothing happens outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ends = (signal.SIGINT, signal.SIGTERM)
    numbers = (*ends, *([signal.SIGHUP] if reload is not None else []))
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number in ends:
            signal.signal(number, before[number])

    def ask(number: int, _stack: object) -> None:
        if number == signal.SIGHUP:
            if reload is not None:
                reload()
            return
        restore()
        stop()

    for number in numbers:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_WAIT_S = 0.05
FAILED = "failed"


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
    publisher = Publisher(sinks, settled.on_event, settled.addresses)
    modes = as_modes(work)
    inbox = SharedInbox()
    swapper = settled.swapper
    reload = swapper.request_reload if swapper is not None and swapper.reloads else None

    def stop() -> None:
        publisher.stop_blocking()  # the loop may be waiting for a sink
        inbox.stop()

    with handle_signals(stop, reload) if settled.signals else nullcontext():
        try:
            _check(modes, sources)
            settled.notifier.extend_timeout("warming the engine up")
            modes = warmed(modes)
            if swapper is not None:
                swapper.started(modes)
            pipeline = Pipeline(
                modes, clock or SystemClock(), budget, publisher, deadlines_ns=settled.deadlines_ns
            )
            restarts = {camera: settled.of(camera).restarts for camera in sources}
            receiver = Receiver(_settings(sources, settled, modes), inbox, restarts)
            loop = _Loop(inbox, pipeline, publisher, receiver, settled)
            try:
                loop.run()
                all_sinks_failed = not publisher.alive
            finally:
                settled.observer.on_end()
                settled.notifier.stopping()
                publisher.stop_blocking()
                receiver.stop()
                inbox.drop_waiting()
                loop.drain_events()
        finally:
            for aside in settled.side_tasks:
                aside.close()
            reports = publisher.close(settled.drain_s)
    if receiver.refused is not None:
        raise receiver.refused
    return RunSummary(
        inbox.counts(),
        pipeline.judge.misses,
        pipeline.metrics.snapshot(),
        tuple(pipeline.modes),
        tuple(pipeline.events),
        tuple(receiver.failures),
        tuple(reports),
        {aside.name: aside.state() for aside in settled.side_tasks},
        all_sinks_failed,
    )


def _check(modes: Sequence[Mode], sources: Mapping[str, str]) -> None:
    decoders = (mode.parts.decoder for mode in modes)
    if any(isinstance(one, DetectionDecoder) and one.spec.family == "none" for one in decoders):
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


@dataclass
class _Loop:
    """Round and round: install what is ready, take a frame, serve it, tell the news."""

    inbox: SharedInbox
    pipeline: Pipeline
    publisher: Publisher
    receiver: Receiver
    options: RunOptions

    def __post_init__(self) -> None:
        self._heartbeat = WatchdogHeartbeat(self.options.notifier)
        self._memory = MemoryWatch(lambda: self.receiver.pids)

    def run(self) -> None:
        options, published = self.options, 0
        options.observer.on_open(self._view())
        options.notifier.ready(f"mode {self.pipeline.state.mode}: waiting for the first frame")
        while not self.inbox.over and published != options.frames:
            if self.receiver.refused is not None or not self.publisher.alive:
                return
            options.observer.on_tick()
            self._install()
            arrival = self.inbox.next(_WAIT_S)
            self.drain_events()
            if arrival is None:
                self._heartbeat.on_idle(self._nothing_is_due)
            elif not self.pipeline.wants(arrival.frame):
                self.inbox.finished(arrival.frame.camera, STRIDE)
                arrival.release()
            else:
                self._serve(arrival)
                published += 1

    def _view(self) -> RunView:
        states = {aside.name: aside.state for aside in self.options.side_tasks}
        return RunView(
            self.pipeline.judge.budget,
            self.inbox.counts_by_camera,
            self.publisher.reports,
            lambda: self.receiver.pids,
            swap=self.options.swapper.swap if self.options.swapper is not None else None,
            drift=states.get("drift", lambda: None),
            shadow=states.get("shadow", lambda: None),
        )

    def _install(self) -> None:
        if self.options.swapper is not None:
            self._now_serves(self.options.swapper.install(self.pipeline))

    def _now_serves(self, served: ActiveModes | None) -> None:
        if served is not None and served.bundle is not None:
            for aside in self.options.side_tasks:
                aside.serves(served.bundle)

    def _serve(self, arrival: Arrival) -> None:
        frame = arrival.frame
        outcome: str | None = FAILED
        try:
            result = self._process(arrival)
            outcome = None
            self.options.observer.on_frame(frame, result)
            for aside in self.options.side_tasks:
                aside.on_frame(frame, result.published, relaxed=self.pipeline.relaxed)
        finally:
            self.inbox.finished(frame.camera, outcome)
            arrival.release()
        self._heartbeat.on_frame(self.pipeline)
        if self.options.swapper is not None:
            self.options.swapper.on_published()
        if self.options.on_result is not None:
            self.options.on_result(result)

    def _process(self, arrival: Arrival) -> FrameResult:
        """A new bundle that breaks on one of its first frames gives way to the one before, on this very frame."""
        try:
            return self.pipeline.process(arrival)
        except Exception as error:
            swapper = self.options.swapper
            before = swapper.roll_back(self.pipeline, error) if swapper is not None else None
            if before is None:
                raise
            self._now_serves(before)
            return self.pipeline.process(arrival)

    def _nothing_is_due(self) -> bool:
        """No frame waits, and of every camera it is known why it delivers none, or it is not due yet."""
        return self.inbox.counts().in_flight == 0 and self.receiver.accounted

    def drain_events(self) -> None:
        """FrameResult what became of cameras, bundles and memory into events."""
        tell = self.pipeline.tell
        self.receiver.events.drain(tell)
        if self.options.swapper is not None:
            self.options.swapper.events.drain(tell)
        for aside in self.options.side_tasks:
            aside.events.drain(tell)
        for event in self._memory.look():
            tell(event)
