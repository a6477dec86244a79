"""Replay one log with one bundle: from the inbox to the governor, on a clock that moves only when told to."""

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
from avq.daemon.pipeline import Pipeline
from avq.engines.cpu import instruction_set
from avq.errors import DataError
from avq.plugins import PluginHost
from avq.progress import Reporter, Silent
from avq.replay.log import EndOfLogError, Loaded, Log, made_ahead
from avq.replay.log_sources import open_log
from avq.replay.result import Answer, ReplayResult
from avq.replay.timing import Bench, PrepareAhead, Stages, Timing, plan_timing, timed
from avq.types import Frame, LatencyBudget, PreprocessSpec, Published, StageTimes

# The daemon's loop over a log: what arrives when, what waits, what is dropped, and where every frame
# went.

#: A frame that the daemon dropped on the road is not in its record.
UNRECORDED = "unrecorded"
UNREADABLE = "unreadable"


class Kept:
    """Takes what the pipeline publishes."""

    def __init__(self) -> None:
        self.messages: list[Published] = []
        self.times: list[StageTimes] = []

    def publish(self, message: Published, frame: Frame, times: StageTimes, *, wait: bool) -> None:
        self.messages.append(message)
        self.times.append(times)

    def event(self, event: Mapping[str, Any]) -> None:
        """The pipeline keeps them."""


class Drive:
    """The loop of the daemon without threads: time passes where the plan says, or until the next frame comes."""

    def __init__(
        self, log: Log, pipeline: Pipeline, stages: Stages, ahead: PrepareAhead | None, *, live: bool
    ) -> None:
        self.inbox = Inbox()
        self.remark = log.remark
        self._log, self._pipeline, self._stages, self._ahead, self._live = log, pipeline, stages, ahead, live
        self._clock = stages.clock
        self._lost: dict[str, Counter[str]] = {}
        self._expected: dict[str, int] = {}
        self._next: Loaded | None = None

    def run(self, limit: int | None, report: Reporter) -> None:
        """Until the log ends or ``limit`` frames are published."""
        frames = made_ahead(self._log.frames(), self._ahead, workers=self._log.workers)
        try:
            self._advance(frames)
            for _ in report.track(self._turns(frames), f"replay {Path(self._log.uri).name}", limit or 0):
                if limit is not None and len(self._stages.measured) >= limit:
                    break
        finally:
            frames.close()
        self.inbox.drop_waiting()

    def _turns(self, frames: Generator[Loaded, None, None]) -> Iterator[None]:
        """One step per published frame."""
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

    def _offer_due(self, frames: Generator[Loaded, None, None]) -> None:
        """Everything that has arrived by now; of a file, the one frame it holds out."""
        while self._next is not None:
            frame, pixels = self._next.frame, self._next.pixels
            if self._live and frame.arrival_ns > self._clock.now_ns():
                return
            lost = self._account_for(frame.camera, frame.seq, readable=pixels is not None)
            if pixels is not None:
                if self._next.made is not None:
                    self._stages.made[frame.key] = self._next.made
                picture = Frame(frame.camera, frame.seq, frame.t_capture_ns, pixels)
                self.inbox.offer(Arrival(picture, live=self._live), lost)
            else:
                self.inbox.lost_so_far(frame.camera, lost)
            self._advance(frames)
            if not self._live and pixels is not None:
                return

    def _account_for(self, camera: str, seq: int, *, readable: bool) -> dict[str, int]:
        """Cumulative losses of a camera, frames missing before this one included."""
        if camera not in self._lost:
            self._lost[camera] = Counter()
            self.inbox.open_camera(camera, every=not self._live)
        lost = self._lost[camera]
        missing = seq - self._expected.get(camera, 0)
        if missing > 0:
            lost[UNRECORDED] += missing
        self._expected[camera] = seq + 1
        if not readable:
            lost[UNREADABLE] += 1
        return dict(lost)

    def _advance(self, frames: Generator[Loaded, None, None]) -> None:
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
    """What to replay; plain data that can be pickled and sent to another machine.

    Attributes:
        log: path or URI.
        bundle: the bundle folder.
        config: a run configuration whose budget and modes hold; its bundle is replaced by ``bundle``.
        timing: stage times; None takes recorded ones where the log has this bundle's, else scaled ones.
        policy: "auto": newest wins for logs of cameras, every frame of files.
        frames: stop after so many published frames.
        known: bundle digest -> what its build measured, of bundles that recorded the log but are not at hand.
    """

    log: str
    bundle: Path
    config: Path | None = None
    timing: Timing | None = None
    policy: Policy = "auto"
    frames: int | None = None
    known: Mapping[str, Bench] = field(default_factory=dict)


def replay(
    request: ReplayRequest, *, host: PluginHost | None = None, report: Reporter | None = None
) -> ReplayResult:
    """Every frame of the log through preprocess, engine, decode, judge and governor.

    The same log, bundle digest, configuration and instruction set give the same bits, except with
    ``timing="measured"``, where the decisions follow this machine.

    Raises:
        DataError: the log holds no readable picture.
        RequestError, BundleError, MachineError: it cannot be opened, or not here.
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
        mode.parts.bundle_digest: bench_of(source.bundle) for source, mode in zip(sources, modes, strict=True)
    }
    plan = plan_timing(request.timing, log.recorded, benches, {**request.known, **benches})
    budget = config.budget.latency_budget() if config is not None else _BUDGET
    clock, kept = ReplayClock(), Kept()
    stages = Stages(plan, clock)
    for mode in {id(mode.parts.session): mode for mode in modes}.values():
        warm_up(mode.parts)
    ladder = [
        replace(
            mode,
            parts=timed(mode.parts, stages),
            cost_ns=plan.cost_ns(mode.parts.bundle_digest),
        )
        for mode in modes
    ]
    pipeline = Pipeline(ladder, clock, budget, kept)
    began_ns = time.monotonic_ns()
    drive = Drive(log, pipeline, stages, _ahead(modes, stages), live=_live(request.policy, log))
    try:
        drive.run(request.frames, report)
        boxes = [stages.boxes(index, message.detections) for index, message in enumerate(kept.messages)]
    finally:
        stages.close()
    seconds = (time.monotonic_ns() - began_ns) / 1e9
    if not kept.messages:
        raise DataError(
            f"no frame of {log.uri} could be replayed",
            seen=drive.remark or f"dropped: {drive.inbox.counts().dropped or 'none'}",
            fix="check that it holds pictures: avq inspect",
        )
    session = modes[0].parts.session
    return ReplayResult(
        log=request.log,
        log_digest=log.digest(),
        bundle_digest=modes[0].parts.bundle_digest,
        config_digest=_config_digest(request, budget, sources, modes),
        machine=f"{session.engine} {version} {session.precision}, {instruction_set()}",
        labels=modes[0].parts.labels,
        answers=tuple(
            Answer(replace(message, detections=seen), virtual, row.times())
            for message, seen, virtual, row in zip(
                kept.messages, boxes, kept.times, stages.measured, strict=True
            )
        ),
        events=tuple(pipeline.events),
        account=drive.inbox.counts(),
        modes=tuple(pipeline.modes),
        misses=pipeline.judge.misses,
        timing=plan.kind,
        timing_remark=plan.remark,
        seconds=seconds,
        engine_seconds=stages.engine_ns / 1e9,
        benches=benches,
        remark=drive.remark,
        start_unix_ns=log.start_unix_ns,
    )


def _ahead(modes: Sequence[Mode], stages: Stages) -> PrepareAhead | None:
    """Inputs for the best mode; one with another preprocessing prepares its own."""
    spec = getattr(modes[0].parts.preprocessor, "spec", None)
    return PrepareAhead(spec) if stages.in_advance and isinstance(spec, PreprocessSpec) else None


def bench_of(bundle: Path) -> Bench:
    """What the build of a bundle measured of itself."""
    from avq.bundle import open_bundle

    metrics: Bench = open_bundle(bundle, allow_unaccepted=True).manifest.metrics
    return metrics


def _live(policy: Policy, log: Log) -> bool:
    return log.live if policy == "auto" else policy == "newest"


def _config_digest(
    request: ReplayRequest, budget: LatencyBudget, sources: Sequence[ModeSource], modes: Sequence[Mode]
) -> str:
    """Of what decides about frames, the bundle in question left out: references outlive it."""
    own = modes[0].parts.bundle_digest
    rungs = [
        {
            "name": source.name,
            "stride": source.stride,
            "bundle": "" if mode.parts.bundle_digest == own else mode.parts.bundle_digest,
        }
        for source, mode in zip(sources, modes, strict=True)
    ]
    told: dict[str, Any] = {
        "budget": [budget.deadline_ns, budget.window_frames, budget.max_miss_ratio],
        "modes": rungs,
        "policy": request.policy,
        "frames": request.frames,
    }
    return hashlib.sha256(msgspec.json.encode(told, order="sorted")).hexdigest()
