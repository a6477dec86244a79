"""The daemon's loop over a log: what arrives when, what waits, what is dropped, and where every frame went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

from avq.daemon.inbox import STRIDE, Arrival, Inbox
from avq.daemon.pipeline import Pipeline
from avq.progress import Reporter
from avq.replay.frames import Loaded, made_ahead
from avq.replay.log import EndOfLogError, Log
from avq.replay.timed import PrepareAhead, Stages
from avq.types import Frame, Published, StageTimes

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
