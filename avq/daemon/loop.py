"""The loop of the daemon: frames from the cameras in, messages out, until the cameras or the run end."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

from avq.clock import Clock, ClockStep, ClockWatch, SystemClock
from avq.daemon.capture_protocol import CaptureSettings
from avq.daemon.engine_recovery import HEALTHY_FRAMES, EngineRecovery, FailureCounter, cause_of
from avq.daemon.inbox import STRIDE, Arrival, SharedInbox
from avq.daemon.memory import MemoryWatch
from avq.daemon.metrics import RunSummary
from avq.daemon.modes import ActiveModes, Mode, as_modes, warm_modes
from avq.daemon.observer import RunView
from avq.daemon.options import RunOptions
from avq.daemon.pipeline import FrameResult, Pipeline
from avq.daemon.publisher import Publisher
from avq.daemon.receiver import Receiver
from avq.daemon.run_events import run_ended, run_started
from avq.daemon.step import Parts
from avq.daemon.stop_deadline import StopDeadline
from avq.daemon.systemd import WatchdogHeartbeat
from avq.errors import AvqError, MachineError, RequestError
from avq.hookspecs import Sink
from avq.types import Frame, LatencyBudget
from avq.types.frame import CameraEvent, ClockEvent


@contextmanager
def handle_signals(stop: Callable[[], None], reload: Callable[[], None] | None) -> Iterator[None]:
    """Call ``stop`` on SIGINT or SIGTERM and ``reload`` on SIGHUP.

    Wrappers double a signal: those within ``SIGNAL_GRACE_S`` of the first are one. A later one acts as before.
    Both functions must be safe in a signal handler. Outside the main thread no handler is installed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ends = (signal.SIGINT, signal.SIGTERM)
    numbers = (*ends, *([signal.SIGHUP] if reload is not None else []))
    before = {number: signal.getsignal(number) for number in numbers}
    stopped_s: list[float] = []

    def handle(number: int, _stack: object) -> None:
        if number == signal.SIGHUP:
            if reload is not None:
                reload()
        elif not stopped_s:
            stopped_s.append(time.monotonic())
            stop()
        elif time.monotonic() - stopped_s[0] >= SIGNAL_GRACE_S:
            for end in ends:
                signal.signal(end, before[end])
            signal.raise_signal(number)

    for number in numbers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


#: A second signal within this time belongs to the first.
SIGNAL_GRACE_S = 1.0
_STUCK_DRAIN_S = 2.0
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
        work: the opened bundle, or the modes of a ladder, best first; closed by the caller.
        sources: camera id -> URI.
        sinks: opened; closed here in every case.
        budget: deadline and tolerated misses.
        options: everything that has a default.
        clock: of frames and stages; the system clock by default.

    Raises:
        RequestError, DataError: a file could not be opened or gave no frame at all.
        MachineError: no camera could be opened within its limit of restarts.
        Exception: the engine raised it on a synthetic picture, before the first frame.
    """
    settings = options or RunOptions()
    publisher = Publisher(sinks, settings.on_event, settings.addresses)
    modes = as_modes(work)
    inbox = SharedInbox()
    swapper = settings.swapper
    reload = swapper.request_reload if swapper is not None and swapper.reloads else None

    def stop() -> None:
        publisher.stop_blocking()  # the loop may be waiting for a sink
        inbox.stop()

    with handle_signals(stop, reload) if settings.signals else nullcontext():
        try:
            _check(modes, sources)
            settings.notifier.extend_timeout("engine warm-up")
            modes = warm_modes(modes)
            if swapper is not None:
                swapper.started(modes)
            pipeline = Pipeline(
                modes, clock or SystemClock(), budget, publisher, deadlines_ns=settings.deadlines_ns
            )
            restarts = {camera: settings.of(camera).restarts for camera in sources}
            receiver = Receiver(_settings(sources, settings, modes), inbox, restarts)
            loop = _Loop(inbox, pipeline, publisher, receiver, settings)
            publisher.record(run_started(pipeline, modes))
            deadline = settings.deadline or StopDeadline()
            deadline.drain = partial(publisher.close, _STUCK_DRAIN_S)
            try:
                loop.run()
                all_sinks_failed = not publisher.working
            finally:
                deadline.loop_ended()
                settings.observer.on_end()
                settings.notifier.stopping()
                publisher.stop_blocking()
                receiver.stop()
                inbox.drop_waiting()
                loop.drain_events()
                publisher.record(run_ended(pipeline, inbox.counts_by_camera()))
        finally:
            for side_task in settings.side_tasks:
                side_task.close()
            reports = publisher.close(settings.drain_s)
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
        {side_task.name: side_task.state() for side_task in settings.side_tasks},
        all_sinks_failed,
        loop.engine_error,
    )


def _check(modes: Sequence[Mode], sources: Mapping[str, str]) -> None:
    if any(mode.parts.decoder is None for mode in modes):
        raise RequestError(
            "the bundle names no decoder for its outputs",
            seen="decoder 'none'",
            fix="build it again with --decoder NAME; 'avq plugins' lists the families",
        )
    if not sources:
        raise RequestError("no source given", seen="no camera", fix="add --source URI")


def _settings(
    sources: Mapping[str, str], options: RunOptions, modes: Sequence[Mode]
) -> list[CaptureSettings]:
    """Settings per camera; a single source whose every frame counts is read no further than ``frames``."""
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
    """Each round: install a prepared bundle, take a frame, serve it, hand on events."""

    inbox: SharedInbox
    pipeline: Pipeline
    publisher: Publisher
    receiver: Receiver
    options: RunOptions
    _last_error: AvqError | None = None

    def __post_init__(self) -> None:
        self._heartbeat = WatchdogHeartbeat(self.options.notifier)
        self._memory = MemoryWatch(lambda: self.receiver.pids)
        self._clock = ClockWatch()
        self._failures = FailureCounter()
        self._recovery = EngineRecovery((("the bundle once more", self._reopen), *self.options.fallbacks))
        self._broken: ActiveModes | None = None
        self.engine_error: AvqError | None = None  # that ended the run

    def run(self) -> None:
        options, published = self.options, 0
        options.observer.on_open(self._view())
        options.notifier.ready(f"mode {self.pipeline.state.mode}: waiting for the first frame")
        while not self.inbox.over and published != options.frames:
            if self.receiver.refused is not None or self.engine_error is not None or not self.publisher.alive:
                return
            options.observer.on_tick()
            if self._recovery.busy:
                self._wait_for_engine()
                continue
            self._install()
            arrival = self.inbox.next(_WAIT_S)
            self.drain_events()
            if arrival is None:
                self._heartbeat.on_idle(self._idle_explained)
            elif not self.pipeline.wants(arrival.frame):
                self.inbox.finished(arrival.frame.camera, STRIDE)
                arrival.release()
            else:
                published += self._serve(arrival)

    def _view(self) -> RunView:
        states = {side_task.name: side_task.state for side_task in self.options.side_tasks}
        return RunView(
            self.pipeline.judge.budget,
            self.inbox.counts_by_camera,
            self.publisher.reports,
            lambda: self.receiver.pids,
            lambda: self.receiver.conditions,
            swap=self.options.swapper.swap if self.options.swapper is not None else None,
            drift=states.get("drift", lambda: None),
            shadow=states.get("shadow", lambda: None),
        )

    def _install(self) -> None:
        if self.options.swapper is not None:
            self._announce(self.options.swapper.install(self.pipeline))

    def _announce(self, served: ActiveModes | None) -> None:
        if served is not None and served.bundle is not None:
            for side_task in self.options.side_tasks:
                side_task.on_bundle(served.bundle)

    def _serve(self, arrival: Arrival) -> bool:
        """Process one frame; return whether it was published. A frame that fails is counted and reported."""
        frame = arrival.frame
        outcome: str | None = FAILED
        result: FrameResult | None = None
        try:
            result = self._process(arrival)
            outcome = None
            self.options.observer.on_frame(frame, result)
            for side_task in self.options.side_tasks:
                side_task.on_frame(frame, result.published, relaxed=self.pipeline.relaxed)
        except (Exception, SystemExit) as error:  # a plugin's SystemExit must not end the service
            if result is not None:
                raise
            self._on_failure(frame, error)
        finally:
            self.inbox.finished(frame.camera, outcome)
            arrival.release()
        if result is None:
            return False
        self._on_published(result)
        return True

    def _on_published(self, result: FrameResult) -> None:
        self._failures.on_success()
        if self._failures.healthy == HEALTHY_FRAMES:
            self._recovery.healthy()
        self._heartbeat.on_frame(self.pipeline)
        if self.options.swapper is not None:
            self.options.swapper.on_published()
        if self.options.on_result is not None:
            self.options.on_result(result)

    def _on_failure(self, frame: Frame, error: BaseException) -> None:
        """Report a failed frame; when failures repeat, replace the engine or end the run."""
        cause, now_ns = cause_of(error), time.monotonic_ns()
        if self._failures.is_new(cause, now_ns):
            reason = f"frame {frame.seq} failed: {cause}; further ones of this cause are counted"
            self._report("frame_failed", reason, frame.camera)
        if not self._failures.on_failure():
            return
        self._failures.restart()
        swapper = self.options.swapper
        self._broken = swapper.take_serving() if swapper is not None else None
        self.engine_error = MachineError(
            "the engine failed repeatedly",
            seen=cause,
            fix="check the bundle with avq eval, and the device; [fallback] names bundles that may replace it",
        )
        if swapper is not None:
            self._try_next(self._broken)

    def _try_next(self, broken: ActiveModes | None) -> None:
        """Open the engine of the next step; without one the error stands and ends the run."""
        assert self.engine_error is not None
        if self._recovery.begin(broken):
            self._last_error, self.engine_error = self.engine_error, None

    def _wait_for_engine(self) -> None:
        """Wait for another engine without taking frames; the watchdog is fed, as opening has a limit of its own."""
        outcome = self._recovery.poll(_WAIT_S)
        self.drain_events()
        self._heartbeat.on_idle(lambda: True)
        if isinstance(outcome, AvqError):
            self._report("engine_failed", cause_of(outcome))
            self.engine_error = self._last_error
            self._try_next(None)
        elif outcome is not None:
            name, served = outcome
            assert self.options.swapper is not None
            self.options.swapper.adopt(served)
            self.pipeline.install(served.modes)
            self._announce(served)
            self._report("engine_replaced", f"the engine failed repeatedly; it was replaced by {name}")

    def _reopen(self) -> ActiveModes:
        if self._broken is None or self._broken.reopen is None:
            raise MachineError("the bundle cannot be opened once more")
        return self._broken.reopen()

    def _report(self, kind: str, reason: str, camera: str = "") -> None:
        event: CameraEvent = {
            "kind": kind,
            "t_ns": time.monotonic_ns(),
            "camera": camera,
            "cause": FAILED,
            "reason": reason,
        }
        self.pipeline.record_event(event)

    def _process(self, arrival: Arrival) -> FrameResult:
        """Process a frame; a new bundle that fails on it is rolled back, and the one before serves the frame."""
        try:
            return self.pipeline.process(arrival)
        except (Exception, SystemExit) as error:
            swapper = self.options.swapper
            before = swapper.roll_back(self.pipeline, error) if swapper is not None else None
            if before is None:
                raise
            self._announce(before)
            return self.pipeline.process(arrival)

    def _idle_explained(self) -> bool:
        """Whether no frame is queued, and every camera has a known reason to deliver none or is not due yet."""
        return self.inbox.counts().in_flight == 0 and self.receiver.silence_explained

    def drain_events(self) -> None:
        """Hand the events of cameras, bundles, side tasks and memory to the sinks."""
        record = self.pipeline.record_event
        self.receiver.events.drain(record)
        if self.options.swapper is not None:
            self.options.swapper.events.drain(record)
        for side_task in self.options.side_tasks:
            side_task.events.drain(record)
        for event in self._memory.sample():
            record(event)
        if (step := self._clock.look()) is not None:
            record(_clock_event(step))


def _clock_event(step: ClockStep) -> ClockEvent:
    return {
        "kind": "clock_stepped",
        "t_ns": time.monotonic_ns(),
        "reason": step.reason,
        "step_s": round(step.step_ns / 1e9, 3),
        "suspended_s": round(step.suspended_ns / 1e9, 3),
    }
