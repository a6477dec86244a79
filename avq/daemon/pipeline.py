"""One frame from the inbox to the governor, forward only, on any clock.

The daemon runs it on cameras and the system clock, replay on a log and a virtual clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Protocol, cast

from avq.clock import Clock
from avq.daemon.governor import Deadline, GovernorState, Observation, Transition, govern, move
from avq.daemon.inbox import Arrival
from avq.daemon.metrics import LatencyJudge, Metrics
from avq.daemon.modes import Mode, as_modes, rungs
from avq.daemon.step import Parts, step
from avq.redaction import redact
from avq.text import map_texts, utf8
from avq.types import Frame, LatencyBudget, Published, StageTimes
from avq.types.frame import Before, Event, TransitionEvent

_INTERVALS = 15
#: A camera without a frame among this number of last published frames is not served any more.
_RECENT = 16


class FrameRateEstimator:
    """Estimates the frame periods of live cameras from capture times and sequence numbers.

    Sequence numbers count dropped frames too, so drops do not make a camera seem slower. Pure: replay estimates the
    same.

    Args:
        live: cameras to regard; None regards every camera that is added.
    """

    def __init__(self, live: Collection[str] | None = None) -> None:
        self._live = live
        self._last: dict[str, tuple[int, int]] = {}
        self._intervals_ns: dict[str, deque[float]] = {}
        self._recent: deque[str] = deque(maxlen=_RECENT)

    def on_frame(self, camera: str, seq: int, t_capture_ns: int) -> None:
        """Add one frame of a live camera."""
        if self._live is not None and camera not in self._live:
            return
        last = self._last.get(camera)
        self._last[camera] = seq, t_capture_ns
        self._recent.append(camera)
        if last is not None and seq > last[0]:
            known = self._intervals_ns.setdefault(camera, deque(maxlen=_INTERVALS))
            known.append((t_capture_ns - last[1]) / (seq - last[0]))

    @property
    def cameras_seen(self) -> set[str]:
        """Live cameras that were served at any time."""
        return set(self._last)

    @property
    def recent(self) -> set[str]:
        """Live cameras that are served now."""
        return set(self._recent)

    @property
    def cameras(self) -> int:
        """Number of live cameras, at least 1."""
        return max(1, len(self.recent))

    @property
    def period_ns(self) -> float:
        """Frame period of the fastest live camera; 0 while unknown, and for files."""
        known = [median(self._intervals_ns[c]) for c in self.recent if c in self._intervals_ns]
        return min(known, default=0.0)


#: Events and mode changes kept for the summary; sinks get all of them.
_SUMMARY_LENGTH = 1024


class MessageSink(Protocol):
    """Takes messages and events without delaying the frame path."""

    def publish(self, message: Published, frame: Frame, times: StageTimes, *, wait: bool) -> None: ...

    def event(self, event: Event) -> None: ...


@dataclass(frozen=True, slots=True)
class FrameResult:
    """Message, stage times and mode change of one frame."""

    published: Published
    times: StageTimes
    transition: Transition | None


class Pipeline:
    """Processes, publishes, judges and measures one frame after the other, and decides the mode of the next.

    Args:
        work: the opened bundle, or the modes of the ladder, best first, with their costs.
        clock: the only source of time.
        budget: deadline and tolerated misses.
        publisher: receives messages and events.
        deadlines_ns: camera id -> deadline, of cameras that have their own.
    """

    def __init__(
        self,
        work: Parts | Sequence[Mode],
        clock: Clock,
        budget: LatencyBudget,
        publisher: MessageSink,
        *,
        deadlines_ns: Mapping[str, int] | None = None,
    ) -> None:
        self.metrics = Metrics()
        self.judge = LatencyJudge(budget, deadlines_ns)
        self.events: deque[Event] = deque(maxlen=_SUMMARY_LENGTH)
        self.clock = clock
        self.frame_rate = FrameRateEstimator()
        self._modes = as_modes(work)
        self.state = GovernorState(self._modes[0].name)
        self.modes = deque([self.state.mode], maxlen=_SUMMARY_LENGTH)
        self._publisher = publisher
        self._last_seq: dict[str, int] = {}

    @property
    def mode(self) -> Mode:
        """The mode that the next frame is processed with."""
        return self._modes[self.state.ladder.rung]

    @property
    def relaxed(self) -> bool:
        """Whether the best mode holds its deadline, so that side tasks may run."""
        return self.state.ladder.rung == 0 and not self.state.alert

    def wants(self, frame: Frame) -> bool:
        """Whether the stride of the mode takes this frame; else it is dropped."""
        last = self._last_seq.get(frame.camera)
        return last is None or frame.seq < last or frame.seq - last >= self.mode.stride

    def install(self, modes: Sequence[Mode]) -> None:
        """Serve other modes from the next frame on; loads are measured anew, as costs are those of another time."""
        self._modes = tuple(modes)
        rung = min(self.state.ladder.rung, len(self._modes) - 1)
        ladder = replace(
            self.state.ladder,
            rung=rung,
            loads=(),
            overruns=0,
            steady=0,
            switched_ns=self.clock.now_ns(),
            rose=False,
        )
        self.state = replace(self.state, mode=self._modes[rung].name, ladder=ladder)
        self.judge.restart()
        self._note_mode()

    def process(self, arrival: Arrival) -> FrameResult:
        """Process and publish one frame; its slot may be released afterwards."""
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
            deadline_ns=self.judge.deadline_ns(frame.camera),
        )
        self._publisher.publish(published, frame, times, wait=not arrival.live)
        if arrival.live:
            self.frame_rate.on_frame(frame.camera, frame.seq, frame.t_capture_ns)
        transition = self._decide(published, times)
        self.metrics.record(times, age_ns)
        return FrameResult(published, times, transition)

    def _decide(self, published: Published, times: StageTimes) -> Transition | None:
        """Change the mode, or the alert; an alert is judged only on frames that the mode before did not delay."""
        undelayed = self.state.is_settled(published.detections.t_capture_ns)
        transition = self._climb(published, times) if len(self._modes) > 1 else None
        if transition is not None or not undelayed:
            self.judge.count(published.age_ns, published.detections.camera)
        else:
            judgement = self.judge.judge(published.age_ns, published.detections.camera)
            self.state, transition = govern(self.state, judgement, self.judge.budget)
        if transition is not None:
            self._record_transition(transition, published)
        return transition

    def _climb(self, published: Published, times: StageTimes) -> Transition | None:
        """Choose a rung. Cameras alternate, so a frame may wait for one frame of each other camera."""
        cameras, judge = self.frame_rate.cameras, self.judge
        strictest_ns = min(map(judge.deadline_ns, self.frame_rate.recent | {published.detections.camera}))
        service_ns = published.age_ns - times.queue_ns
        queue_ns = max(0, times.queue_ns - (cameras - 1) * service_ns)
        observation = Observation(published.detections.t_capture_ns, cameras * service_ns, queue_ns)
        deadline = Deadline(strictest_ns, self.frame_rate.period_ns, judge.budget.max_miss_ratio)
        self.state, transition = move(self.state, observation, rungs(self._modes, cameras), deadline)
        if transition is not None:
            self.judge.restart()
            self._note_mode()
        return transition

    def _note_mode(self) -> None:
        if self.modes[-1] != self.state.mode:
            self.modes.append(self.state.mode)

    def _record_transition(self, transition: Transition, published: Published) -> None:
        detections, after = published.detections, transition.after
        event: TransitionEvent = {
            "kind": transition.kind,
            "t_ns": detections.t_capture_ns + published.age_ns,
            "camera": detections.camera,
            "seq": detections.seq,
            **_mode_before(transition),
            "mode": after.mode,
            "alert": after.alert,
            "reason": transition.reason,
        }
        self.record_event(event)

    def record_event(self, event: Event) -> None:
        """Keep an event for the summary and hand it to the sinks."""
        event = cast("Event", map_texts(event, lambda text: redact(utf8(text))))
        self.events.append(event)
        self._publisher.event(event)


def _mode_before(transition: Transition) -> Before:
    return {"from": transition.before.mode} if transition.kind == "mode_changed" else {}
