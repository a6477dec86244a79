"""Replay one log with one bundle through the daemon's own pipeline, from inbox to governor, on a virtual clock."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from avq.clock import ReplayClock
from avq.config import RunConfig, load_run
from avq.daemon.inbox import STRIDE, Arrival, Inbox
from avq.daemon.modes import Mode, ModeSource, Opener, mode_sources, warm_up
from avq.daemon.pipeline import FrameRateEstimator, Pipeline
from avq.engines.cpu import instruction_set
from avq.errors import DataError
from avq.plugins import PluginHost
from avq.preprocess import Preprocessor
from avq.progress import Reporter, Silent
from avq.replay.log import EndOfLogError, LoadedFrame, Log, prepare_ahead
from avq.replay.log_sources import open_log
from avq.replay.recorded_run import estimate_holds
from avq.replay.result import Answer, ReplayResult
from avq.replay.timing import (
    BuildMetrics,
    InputPreparer,
    Timing,
    VirtualStages,
    plan_timing,
    with_virtual_time,
)
from avq.types import Frame, LatencyBudget, Published, StageTimes

#: Cause of frames that the recording daemon dropped: they are missing in the log.
UNRECORDED = "unrecorded"
UNREADABLE = "unreadable"


class CollectingPublisher:
    """Collect in memory what the pipeline publishes.

    Attributes:
        messages: published messages, in order.
        times: stage times of each message.
    """

    def __init__(self) -> None:
        self.messages: list[Published] = []
        self.times: list[StageTimes] = []

    def publish(self, message: Published, frame: Frame, times: StageTimes, *, wait: bool) -> None:
        self.messages.append(message)
        self.times.append(times)

    def event(self, event: Mapping[str, Any]) -> None:
        """Ignore the event: the pipeline keeps all of them."""


class ReplayLoop:
    """Run the daemon's loop without threads, on a virtual clock.

    The clock advances by the planned stage times, and to the arrival of the next frame when none waits.
    """

    def __init__(
        self,
        log: Log,
        pipeline: Pipeline,
        stages: VirtualStages,
        prepare: InputPreparer | None,
        *,
        live: bool,
    ) -> None:
        self.inbox = Inbox()
        self.remark = log.remark
        self._log, self._pipeline, self._stages, self._prepare = log, pipeline, stages, prepare
        self._live = live
        exact = stages.plan.exact and live and log.frames_as_taken is not None
        self._frames = log.frames_as_taken if exact and log.frames_as_taken is not None else log.frames
        self._clock = stages.clock
        self._lost: dict[str, Counter[str]] = {}
        self._expected: dict[str, int] = {}
        self._next: LoadedFrame | None = None

    def run(self, limit: int | None, report: Reporter) -> None:
        """Replay until the log ends or ``limit`` frames are published."""
        frames = prepare_ahead(self._frames(), self._prepare, workers=self._log.workers)
        try:
            self._advance(frames)
            for _ in report.track(self._steps(frames), f"replay {Path(self._log.uri).name}", limit or 0):
                if limit is not None and len(self._stages.measured) >= limit:
                    break
        finally:
            frames.close()
        self.inbox.drop_waiting()
        if limit is None:
            self._count_end()

    def _steps(self, frames: Generator[LoadedFrame, None, None]) -> Iterator[None]:
        """Yield once per published frame."""
        while True:
            self._offer_due(frames)
            arrival = self.inbox.take()
            if arrival is None:
                if self._next is None:
                    return
                self._clock.advance_to(self._next.frame.arrival_ns)
            elif not self._pipeline.wants(arrival.frame):
                self.inbox.finished(arrival.frame.camera, STRIDE)
            else:
                self._pipeline.process(arrival)
                self.inbox.finished(arrival.frame.camera)
                yield

    def _offer_due(self, frames: Generator[LoadedFrame, None, None]) -> None:
        """Offer every frame that has arrived by now; of files, which wait for the reader, one frame."""
        while self._next is not None:
            frame, pixels = self._next.frame, self._next.pixels
            if self._live and frame.arrival_ns > self._clock.now_ns():
                return
            lost = self._count_losses(frame.camera, frame.seq, readable=pixels is not None)
            if pixels is not None:
                if self._next.prepared is not None:
                    self._stages.prepared[frame.key] = self._next.prepared
                picture = Frame(frame.camera, frame.seq, frame.t_capture_ns, pixels)
                self.inbox.offer(Arrival(picture, live=self._live), lost)
            else:
                self.inbox.lost_so_far(frame.camera, lost)
            self._advance(frames)
            if not self._live and pixels is not None:
                return

    def _count_losses(self, camera: str, seq: int, *, readable: bool) -> dict[str, int]:
        """Return the cumulative losses of a camera by cause, including the frames missing before this one."""
        if camera not in self._lost:
            self._lost[camera] = Counter()
            self.inbox.open_camera(camera, every=not self._live)
        lost = self._lost[camera]
        expected = self._expected.get(camera, 0)
        if seq > expected:
            lost[UNRECORDED] += seq - expected
        self._expected[camera] = max(expected, seq + 1)
        if not readable:
            lost[UNREADABLE] += 1
        return dict(lost)

    def _count_end(self) -> None:
        """Count the frames that the recording daemon captured after the last one in the log."""
        captured = self._log.limits.captured if self._log.limits is not None else None
        counts = self.inbox.counts_by_camera()
        for camera, total in (captured or {}).items():
            if camera in counts and total > counts[camera].captured:
                self._lost[camera][UNRECORDED] += total - counts[camera].captured
                self.inbox.lost_so_far(camera, dict(self._lost[camera]))

    def _advance(self, frames: Generator[LoadedFrame, None, None]) -> None:
        try:
            self._next = next(frames, None)
        except EndOfLogError as end:
            self._next = None
            self.remark = self.remark or end.remark


#: Deadline of ``avq run`` without a configuration.
_BUDGET = LatencyBudget(100_000_000)

Policy = Literal["auto", "every", "newest"]


@dataclass(frozen=True)
class ReplayRequest:
    """Arguments of one replay; plain data that can be pickled and sent to another machine.

    Attributes:
        log: path or URI.
        bundle: the bundle folder.
        config: a run configuration; its budget, camera deadlines and modes apply, not its bundle.
        timing: source of stage times; None uses recorded times if the log has those of this bundle, else scaled ones.
        policy: "auto" replays the newest frame of camera logs and every frame of files.
        frames: stop after so many published frames; None replays the whole log.
        known: bundle digest -> build metrics, of bundles that recorded the log but are not available here.
    """

    log: str
    bundle: Path
    config: Path | None = None
    timing: Timing | None = None
    policy: Policy = "auto"
    frames: int | None = None
    known: Mapping[str, BuildMetrics] = field(default_factory=dict)


def replay(
    request: ReplayRequest, *, host: PluginHost | None = None, report: Reporter | None = None
) -> ReplayResult:
    """Run every frame of the log through preprocessing, engine, decoder, latency judge and governor.

    The same log, bundle digest, configuration and instruction set give the same bits, except with
    ``timing="measured"``, where the decisions depend on the speed of this machine.

    Args:
        request: what to replay.
        host: plugins; None loads the installed ones.
        report: progress; None is silent.

    Raises:
        DataError: the log holds no readable picture.
        RequestError, BundleError, MachineError: log or bundle cannot be opened, or not on this machine.
    """
    plugins = host or PluginHost()
    log = open_log(request.log, plugins.sources())
    config = load_run(request.config) if request.config is not None else None
    opener = Opener(plugins.running_engines(), families=plugins.decoders(), allow_unaccepted=True)
    sources = mode_sources(request.bundle, config.modes if config is not None else ())
    served = opener.ladder(sources)
    try:
        engine = opener.engines.get(served.modes[0].parts.session.engine)
        version = engine.status().version if engine is not None else ""
        return _replay(request, log, config, sources, served.modes, version, report or Silent())
    finally:
        served.close()


def _replay(
    request: ReplayRequest,
    log: Log,
    config: RunConfig | None,
    sources: Sequence[ModeSource],
    modes: Sequence[Mode],
    version: str,
    report: Reporter,
) -> ReplayResult:
    benches = {
        mode.parts.bundle_digest: build_metrics(source.bundle)
        for source, mode in zip(sources, modes, strict=True)
    }
    deadlines = _deadlines(config, log)
    plan = plan_timing(request.timing, log.recorded, benches, {**request.known, **benches})
    plan = replace(plan, exact=plan.kind == "recorded" and _must_be_exact(log, deadlines))
    costs_ns = log.limits.costs_ns if log.limits is not None and plan.exact else {}
    clock, publisher = ReplayClock(), CollectingPublisher()
    stages = VirtualStages(plan, clock)
    for mode in {id(mode.parts.session): mode for mode in modes}.values():
        warm_up(mode.parts)
    ladder = [
        replace(
            mode,
            parts=with_virtual_time(mode.parts, stages),
            cost_ns=costs_ns.get(mode.parts.bundle_digest) or plan.cost_ns(mode.parts.bundle_digest),
        )
        for mode in modes
    ]
    pipeline = Pipeline(ladder, clock, deadlines.budget, publisher, deadlines_ns=deadlines.by_camera)
    if log.limits is not None and log.limits.live is not None and plan.exact:
        pipeline.frame_rate = FrameRateEstimator(log.limits.live)
    start_ns = time.monotonic_ns()
    loop = ReplayLoop(log, pipeline, stages, _preparer(modes, stages), live=_live(request.policy, log))
    try:
        loop.run(request.frames, report)
        boxes = [stages.boxes(index, message.detections) for index, message in enumerate(publisher.messages)]
    finally:
        stages.close()
    seconds = (time.monotonic_ns() - start_ns) / 1e9
    if not publisher.messages:
        raise DataError(
            f"no frame of {log.uri} could be replayed",
            seen=loop.remark or f"dropped: {loop.inbox.counts().dropped or 'none'}",
            fix="check that the log holds images: avq inspect",
        )
    session = modes[0].parts.session
    return ReplayResult(
        log=request.log,
        log_digest=log.digest(),
        bundle_digest=modes[0].parts.bundle_digest,
        config_digest=_config_digest(request, deadlines.budget, deadlines.by_camera, sources, modes),
        machine=f"{session.engine} {version} {session.precision}, {instruction_set()}",
        labels=modes[0].parts.labels,
        answers=tuple(
            Answer(replace(message, detections=seen), virtual, row.times())
            for message, seen, virtual, row in zip(
                publisher.messages, boxes, publisher.times, stages.measured, strict=True
            )
        ),
        events=tuple(pipeline.events),
        account=loop.inbox.counts(),
        modes=tuple(pipeline.modes),
        misses=pipeline.judge.misses,
        timing=plan.kind,
        timing_remark=plan.remark,
        seconds=seconds,
        engine_seconds=stages.engine_ns / 1e9,
        benches=benches,
        remark=loop.remark,
        start_unix_ns=log.start_unix_ns,
        deadline_ns=deadlines.budget.deadline_ns,
        deadline_remark=deadlines.remark,
    )


@dataclass(frozen=True)
class _Deadlines:
    """Limits in force, and where they come from."""

    budget: LatencyBudget
    by_camera: Mapping[str, int]
    remark: str


def _deadlines(config: RunConfig | None, log: Log) -> _Deadlines:
    """Return the limits of the configuration, else those that the log was recorded with, else the default."""
    by_camera: Mapping[str, int]
    if config is not None:
        budget, by_camera, source = (
            config.budget.latency_budget(),
            config.deadlines_ns(),
            "of the configuration",
        )
    elif log.limits is not None:
        budget, by_camera, source = log.limits.budget, log.limits.deadlines_ns, "as recorded in the log"
    else:
        recorded = {key[0]: row.deadline_ns for key, row in log.recorded.items() if row.deadline_ns}
        usual = max(recorded.values(), default=_BUDGET.deadline_ns)
        budget = replace(_BUDGET, deadline_ns=usual)
        by_camera = {camera: ns for camera, ns in recorded.items() if ns != usual}
        source = "as recorded in the log" if recorded else "by default: the log holds none"
    own = "".join(f", {camera} {ns / 1e6:g} ms" for camera, ns in sorted(by_camera.items()))
    return _Deadlines(budget, by_camera, f"deadline {budget.deadline_ns / 1e6:g} ms{own}, {source}")


def _must_be_exact(log: Log, deadlines: _Deadlines) -> bool:
    """Whether a replay of the recorded bundle has to follow the recorded schedule.

    Always where the log holds the limits of its run. Records of older versions do not; their replays follow the
    estimated arrivals, as references of them do, unless these give another order, further drops or other late frames.
    """
    if log.taken is None:
        return False
    if log.limits is not None:
        return True
    limits = {
        frame.key[0]: deadlines.by_camera.get(frame.key[0], deadlines.budget.deadline_ns)
        for frame in log.taken
    }
    return not estimate_holds(log.taken, limits)


def _preparer(modes: Sequence[Mode], stages: VirtualStages) -> InputPreparer | None:
    """Return a preparer of network inputs for the best mode; modes with another preprocessing prepare their own."""
    best = modes[0].parts.preprocessor
    return InputPreparer(best.spec) if stages.precomputed and isinstance(best, Preprocessor) else None


def build_metrics(bundle: Path) -> BuildMetrics:
    """Return the metrics that the build of a bundle wrote into its manifest."""
    from avq.bundle import open_bundle

    metrics: BuildMetrics = open_bundle(bundle, allow_unaccepted=True).manifest.metrics
    return metrics


def _live(policy: Policy, log: Log) -> bool:
    return log.live if policy == "auto" else policy == "newest"


def _config_digest(
    request: ReplayRequest,
    budget: LatencyBudget,
    deadlines_ns: Mapping[str, int],
    sources: Sequence[ModeSource],
    modes: Sequence[Mode],
) -> str:
    """Return the digest of all settings that influence decisions; not of the bundle, which references outlive."""
    own = modes[0].parts.bundle_digest
    rungs = [
        {
            "name": source.name,
            "stride": source.stride,
            "bundle": "" if mode.parts.bundle_digest == own else mode.parts.bundle_digest,
        }
        for source, mode in zip(sources, modes, strict=True)
    ]
    settings: dict[str, Any] = {
        "budget": [budget.deadline_ns, budget.window_frames, budget.max_miss_ratio],
        "modes": rungs,
        "policy": request.policy,
        "frames": request.frames,
    }
    if deadlines_ns:  # left out when empty: digests of configurations without them stay as they are
        settings["deadlines_ns"] = dict(deadlines_ns)
    return hashlib.sha256(msgspec.json.encode(settings, order="sorted")).hexdigest()
