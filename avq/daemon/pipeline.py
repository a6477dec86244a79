"""From the inbox to the governor: one frame, forward only, on whatever clock it is given.

The daemon feeds it from cameras and the machine's clock, replay from a log and a clock of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

from avq.clock import Clock
from avq.daemon.governor import GovernorState, Transition, govern
from avq.daemon.inbox import Arrival
from avq.daemon.latency import LatencyJudge
from avq.daemon.metrics import Metrics
from avq.daemon.step import Parts, step
from avq.types import Frame, LatencyBudget, Published, StageTimes


class Publishes(Protocol):
    """Takes messages and events without holding up the frame path."""

    def publish(self, message: Published, frame: Frame, times: StageTimes, *, wait: bool) -> None: ...

    def event(self, event: dict[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class Turn:
    """All that one frame caused."""

    published: Published
    times: StageTimes
    transition: Transition | None


class Pipeline:
    """step, publish, judge, govern, measure.

    Args:
        parts: the opened bundle.
        clock: the only source of time.
        budget: what counts as late.
        publisher: where messages go.
    """

    def __init__(self, parts: Parts, clock: Clock, budget: LatencyBudget, publisher: Publishes) -> None:
        self.metrics = Metrics()
        self.judge = LatencyJudge(budget)
        self.events: list[dict[str, Any]] = []
        self.state = GovernorState(parts.mode)
        self.modes = [parts.mode]
        self._parts = parts
        self.clock = clock
        self._publisher = publisher
        self._last_seq: dict[str, int] = {}

    def process(self, arrival: Arrival) -> Turn:
        """Serve one frame; its pixels may be given back afterwards."""
        frame = arrival.frame
        if not arrival.live:
            frame = replace(frame, t_capture_ns=self.clock.now_ns())
        detections, times = step(frame, self._parts, self.clock)
        age_ns = self.clock.now_ns() - frame.t_capture_ns
        dropped = frame.seq - self._last_seq.get(frame.camera, -1) - 1
        self._last_seq[frame.camera] = frame.seq
        published = Published(
            detections,
            age_ns=age_ns,
            dropped_since_last=dropped,
            late=self.judge.is_late(age_ns),
            mode=self.state.mode,
            bundle_digest=self._parts.bundle_digest,
        )
        self._publisher.publish(published, frame, times, wait=not arrival.live)
        transition = self._decide(published)
        self.metrics.record(times, age_ns)
        return Turn(published, times, transition)

    def _decide(self, published: Published) -> Transition | None:
        judgement = self.judge.judge(published.age_ns)
        self.state, transition = govern(self.state, judgement, self.judge.budget)
        if transition is not None:
            seen = published.detections
            self.tell(
                {
                    "kind": transition.kind,
                    "t_ns": seen.t_capture_ns + published.age_ns,
                    "camera": seen.camera,
                    "seq": seen.seq,
                    "mode": transition.after.mode,
                    "alert": transition.after.alert,
                    "reason": transition.reason,
                }
            )
        return transition

    def tell(self, event: dict[str, Any]) -> None:
        """Keep an event for the summary and hand it to the sinks."""
        self.events.append(event)
        self._publisher.event(event)
