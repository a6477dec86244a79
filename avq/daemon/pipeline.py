"""From the inbox to the governor: one frame, forward only, on whatever clock it is given.

The daemon feeds it from cameras and the machine's clock, replay from a log and a clock of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Protocol

from avq.clock import Clock
from avq.daemon.governor import Deadline, GovernorState, Observation, Transition, govern, move
from avq.daemon.inbox import Arrival
from avq.daemon.metrics import LatencyJudge, Metrics
from avq.daemon.modes import Mode, as_modes, rungs
from avq.daemon.step import Parts, step
from avq.types import Frame, LatencyBudget, Published, StageTimes

# How often frames come, told from the frames themselves: pure, so replay measures the same.

_INTERVALS = 15
#: A camera that is not among so many last served frames is not there any more.
_RECENT = 16


class FrameRateEstimator:
    """Frame periods of the live cameras, from capture times and sequence numbers.

    Sequence numbers count dropped frames too, so dropping does not make a camera look slower.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, int]] = {}
        self._intervals_ns: dict[str, deque[float]] = {}
        self._recent: deque[str] = deque(maxlen=_RECENT)

    def on_frame(self, camera: str, seq: int, t_capture_ns: int) -> None:
        """One more frame of a live camera."""
        last = self._last.get(camera)
        self._last[camera] = seq, t_capture_ns
        self._recent.append(camera)
        if last is not None and seq > last[0]:
            known = self._intervals_ns.setdefault(camera, deque(maxlen=_INTERVALS))
            known.append((t_capture_ns - last[1]) / (seq - last[0]))

    @property
    def recent(self) -> set[str]:
        """Live cameras that are being served."""
        return set(self._recent)

    @property
    def cameras(self) -> int:
        """How many, at least 1."""
        return max(1, len(self.recent))

    @property
    def period_ns(self) -> float:
        """Of the fastest camera being served; 0 while unknown, and for files."""
        known = [median(self._intervals_ns[c]) for c in self.recent if c in self._intervals_ns]
        return min(known, default=0.0)


#: Events and mode changes kept for the summary; sinks get every one.
KEPT = 1024


class Publishes(Protocol):
    """Takes messages and events without holding up the frame path."""

    def publish(self, message: Published, frame: Frame, times: StageTimes, *, wait: bool) -> None: ...

    def event(self, event: dict[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class FrameResult:
    """All that one frame caused."""

    published: Published
    times: StageTimes
    transition: Transition | None


class Pipeline:
    """step, publish, judge, govern, measure.

    Args:
        work: the opened bundle, or the modes of the ladder, best first, with their costs.
        clock: the only source of time.
        budget: what counts as late.
        publisher: where messages go.
        deadlines_ns: of cameras that have one of their own.
    """

    def __init__(
        self,
        work: Parts | Sequence[Mode],
        clock: Clock,
        budget: LatencyBudget,
        publisher: Publishes,
        *,
        deadlines_ns: Mapping[str, int] | None = None,
    ) -> None:
        self.metrics = Metrics()
        self.judge = LatencyJudge(budget, deadlines_ns)
        self.events: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self.clock = clock
        self.frame_rate = FrameRateEstimator()
        self._served = as_modes(work)
        self.state = GovernorState(self._served[0].name)
        self.modes = deque([self.state.mode], maxlen=KEPT)
        self._publisher = publisher
        self._last_seq: dict[str, int] = {}

    @property
    def mode(self) -> Mode:
        """What the next frame is done with."""
        return self._served[self.state.ladder.rung]

    @property
    def relaxed(self) -> bool:
        """The best work is done in time: there is room for work that can wait."""
        return self.state.ladder.rung == 0 and not self.state.alert

    def wants(self, frame: Frame) -> bool:
        """Whether the mode's stride takes this frame; else it is to be dropped for that cause."""
        last = self._last_seq.get(frame.camera)
        return last is None or frame.seq < last or frame.seq - last >= self.mode.stride

    def install(self, modes: Sequence[Mode]) -> None:
        """Serve other bundles from the next frame on; loads are learned anew, as costs are of another hour."""
        self._served = tuple(modes)
        rung = min(self.state.ladder.rung, len(self._served) - 1)
        ladder = replace(
            self.state.ladder,
            rung=rung,
            loads=(),
            overruns=0,
            steady=0,
            switched_ns=self.clock.now_ns(),
            rose=False,
        )
        self.state = replace(self.state, mode=self._served[rung].name, ladder=ladder)
        self.judge.restart()
        self._note_mode()

    def process(self, arrival: Arrival) -> FrameResult:
        """Serve one frame; its pixels may be given back afterwards."""
        frame, mode = arrival.frame, self.mode
        if not arrival.live:
            frame = replace(frame, t_capture_ns=self.clock.now_ns())
        detections, times = step(frame, mode.parts, self.clock)
        age_ns = self.clock.now_ns() - frame.t_capture_ns
        dropped = frame.seq - self._last_seq.get(frame.camera, -1) - 1
        self._last_seq[frame.camera] = frame.seq
        published = Published(
            detections,
            age_ns=age_ns,
            dropped_since_last=dropped,
            late=self.judge.is_late(age_ns, frame.camera),
            mode=mode.name,
            bundle_digest=mode.parts.bundle_digest,
            picture_size_px=(frame.pixels.shape[1], frame.pixels.shape[0]),
        )
        self._publisher.publish(published, frame, times, wait=not arrival.live)
        if arrival.live:
            self.frame_rate.on_frame(frame.camera, frame.seq, frame.t_capture_ns)
        transition = self._decide(published, times)
        self.metrics.record(times, age_ns)
        return FrameResult(published, times, transition)

    def _decide(self, published: Published, times: StageTimes) -> Transition | None:
        """Another mode; or an alert, judged only on frames that had nothing to do with the mode before."""
        settled = self.state.is_settled(published.detections.t_capture_ns)
        transition = self._climb(published, times) if len(self._served) > 1 else None
        if transition is not None or not settled:
            self.judge.count(published.age_ns, published.detections.camera)
        else:
            judgement = self.judge.judge(published.age_ns, published.detections.camera)
            self.state, transition = govern(self.state, judgement, self.judge.budget)
        if transition is not None:
            self._tell_transition(transition, published)
        return transition

    def _climb(self, published: Published, times: StageTimes) -> Transition | None:
        """Cameras take turns, so a frame's service is a round: it may wait for one frame of each other camera."""
        cameras, judge = self.frame_rate.cameras, self.judge
        strictest_ns = min(map(judge.deadline_ns, self.frame_rate.recent | {published.detections.camera}))
        service_ns = published.age_ns - times.queue_ns
        queue_ns = max(0, times.queue_ns - (cameras - 1) * service_ns)
        seen = Observation(published.detections.t_capture_ns, cameras * service_ns, queue_ns)
        deadline = Deadline(strictest_ns, self.frame_rate.period_ns, judge.budget.max_miss_ratio)
        self.state, transition = move(self.state, seen, rungs(self._served, cameras), deadline)
        if transition is not None:
            self.judge.restart()
            self._note_mode()
        return transition

    def _note_mode(self) -> None:
        if self.modes[-1] != self.state.mode:
            self.modes.append(self.state.mode)

    def _tell_transition(self, transition: Transition, published: Published) -> None:
        seen, after = published.detections, transition.after
        self.tell(
            {
                "kind": transition.kind,
                "t_ns": seen.t_capture_ns + published.age_ns,
                "camera": seen.camera,
                "seq": seen.seq,
                **({"from": transition.before.mode} if transition.kind == "mode_changed" else {}),
                "mode": after.mode,
                "alert": after.alert,
                "reason": transition.reason,
            }
        )

    def tell(self, event: dict[str, Any]) -> None:
        """Keep an event for the summary and hand it to the sinks."""
        self.events.append(event)
        self._publisher.event(event)
