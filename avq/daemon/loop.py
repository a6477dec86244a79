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
from avq.daemon.modes import Mode, Served, as_modes, warmed
from avq.daemon.observer import RunView
from avq.daemon.options import RunOptions
from avq.daemon.pipeline import Pipeline, Turn
from avq.daemon.publisher import Publisher
from avq.daemon.receiver import Receiver
from avq.daemon.step import Parts
from avq.daemon.systemd import Heart
from avq.errors import RequestError
from avq.hookspecs import Sink
from avq.types import LatencyBudget

# Signals of a run: end cleanly, or read the configuration again.


@contextmanager
def obeyed(stop: Callable[[], None], reload: Callable[[], None] | None) -> Iterator[None]:
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
    exchange = settled.exchange
    reload = exchange.signalled if exchange is not None and exchange.reloads else None

    def stop() -> None:
        publisher.hurry()  # the loop may be waiting for a sink
        inbox.stop()

    with obeyed(stop, reload) if settled.signals else nullcontext():
        try:
            _check(modes, sources)
            settled.notifier.loading("warming the engine up")
            modes = warmed(modes)
            if exchange is not None:
                exchange.began(modes)
            pipeline = Pipeline(
                modes, clock or SystemClock(), budget, publisher, deadlines_ns=settled.deadlines_ns
            )
            restarts = {camera: settled.of(camera).restarts for camera in sources}
            receiver = Receiver(_settings(sources, settled, modes), inbox, restarts)
            loop = _Loop(inbox, pipeline, publisher, receiver, settled)
            try:
                loop.run()
                unheard = not publisher.alive
            finally:
                settled.watcher.ended()
                settled.notifier.stopping()
                publisher.hurry()
                receiver.stop()
                inbox.drop_waiting()
                loop.tell_news()
        finally:
            for aside in settled.asides:
                aside.close()
            reports = publisher.close(settled.drain_s)
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
        {aside.name: aside.state() for aside in settled.asides},
        unheard,
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


@dataclass
class _Loop:
    """Round and round: install what is ready, take a frame, serve it, tell the news."""

    inbox: SharedInbox
    pipeline: Pipeline
    publisher: Publisher
    receiver: Receiver
    options: RunOptions

    def __post_init__(self) -> None:
        self._heart = Heart(self.options.notifier)
        self._memory = MemoryWatch(lambda: self.receiver.pids)

    def run(self) -> None:
        options, published = self.options, 0
        options.watcher.opened(self._view())
        options.notifier.ready(f"mode {self.pipeline.state.mode}: waiting for the first frame")
        while not self.inbox.over and published != options.frames:
            if self.receiver.refused is not None or not self.publisher.alive:
                return
            options.watcher.beat()
            self._install()
            arrival = self.inbox.next(_WAIT_S)
            self.tell_news()
            if arrival is None:
                self._heart.idle(self._nothing_is_due)
            elif not self.pipeline.wants(arrival.frame):
                self.inbox.finished(arrival.frame.camera, STRIDE)
                arrival.release()
            else:
                self._serve(arrival)
                published += 1

    def _view(self) -> RunView:
        states = {aside.name: aside.state for aside in self.options.asides}
        return RunView(
            self.pipeline.judge.budget,
            self.inbox.accounts,
            self.publisher.reports,
            lambda: self.receiver.pids,
            swap=self.options.exchange.swap if self.options.exchange is not None else None,
            drift=states.get("drift", lambda: None),
            shadow=states.get("shadow", lambda: None),
        )

    def _install(self) -> None:
        if self.options.exchange is not None:
            self._now_serves(self.options.exchange.install(self.pipeline))

    def _now_serves(self, served: Served | None) -> None:
        if served is not None and served.bundle is not None:
            for aside in self.options.asides:
                aside.serves(served.bundle)

    def _serve(self, arrival: Arrival) -> None:
        frame = arrival.frame
        outcome: str | None = FAILED
        try:
            turn = self._process(arrival)
            outcome = None
            self.options.watcher.saw(frame, turn)
            for aside in self.options.asides:
                aside.saw(frame, turn.published, relaxed=self.pipeline.relaxed)
        finally:
            self.inbox.finished(frame.camera, outcome)
            arrival.release()
        self._heart.published(self.pipeline)
        if self.options.exchange is not None:
            self.options.exchange.served()
        if self.options.on_turn is not None:
            self.options.on_turn(turn)

    def _process(self, arrival: Arrival) -> Turn:
        """A new bundle that breaks on one of its first frames gives way to the one before, on this very frame."""
        try:
            return self.pipeline.process(arrival)
        except Exception as error:
            exchange = self.options.exchange
            before = exchange.rescue(self.pipeline, error) if exchange is not None else None
            if before is None:
                raise
            self._now_serves(before)
            return self.pipeline.process(arrival)

    def _nothing_is_due(self) -> bool:
        """No frame waits, and of every camera it is known why it delivers none, or it is not due yet."""
        return self.inbox.account().in_flight == 0 and self.receiver.accounted

    def tell_news(self) -> None:
        """Turn what became of cameras, bundles and memory into events."""
        tell = self.pipeline.tell
        self.receiver.news.tell_all(tell)
        if self.options.exchange is not None:
            self.options.exchange.news.tell_all(tell)
        for aside in self.options.asides:
            aside.news.tell_all(tell)
        for event in self._memory.look():
            tell(event)
