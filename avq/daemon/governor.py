"""Decides per frame how to react to a missed latency budget: a pure state machine without clock or I/O.

First cheaper work (the ladder of modes), and where that does not help, an alert. A decision is data, and the same
frames give the same decisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from avq.daemon.metrics import Judgement
from avq.types import LatencyBudget

#: Frames in a row that must overrun before work is made cheaper: one may be an accident.
OVERRUNS = 3
#: ... while under this load it fails more than so many times the tolerated share.
_FAILS = 2.0
#: A rung that this very load was found good for must fail nearly always: the rest is jitter.
_FAILS_AGAIN = 0.75
#: Frames of steady load before a better rung is tried; doubled each time one was tried in vain.
PATIENCE = 8
_MAX_PATIENCE = 1024
_WINDOW = 32
#: A rise needs this many robust deviations of room: what is between it and an overrun is the hysteresis.
_DEVIATIONS = 3.0
_MAD_TO_SIGMA = 1.4826
#: Frames in a row this many robust deviations from the median are another load, not jitter.
_STEP_DEVIATIONS = 3.0
#: Frames over which a longer way here is believed; waits of many frames must not pass for it.
_DELAY_MEMORY = 16384
_LEAST_SIGMA = 0.01  # of the median: timers and small windows pretend to less


@dataclass(frozen=True, slots=True)
class Rung:
    """One mode of the ladder, best first.

    Attributes:
        name: of the mode, as in the configuration.
        cost_ns: service time of one frame on an unloaded machine, measured at warm-up.
        stride: every so many-th frame is processed.
    """

    name: str
    cost_ns: float
    stride: int = 1


@dataclass(frozen=True, slots=True)
class Deadline:
    """What a rung has to hold.

    Attributes:
        deadline_ns: allowed age at publication.
        period_ns: time between two frames of the camera; 0 when unknown.
        tolerated: share of late frames that is no failure.
    """

    deadline_ns: float
    period_ns: float
    tolerated: float = 0.1

    def age_ns(self, service_ns: float, stride: int, delay_ns: float) -> float:
        """Age that all but the tolerated share of frames stay under at a steady service time.

        A frame that arrives while another is served waits; where service outlasts the period, waits spread
        evenly over one period.
        """
        period_ns = self.period_ns * stride
        wait_ns = 0.0 if service_ns <= period_ns else (1.0 - self.tolerated) * period_ns
        return delay_ns + service_ns + wait_ns

    def holds(self, service_ns: float, stride: int, delay_ns: float) -> bool:
        return self.age_ns(service_ns, stride, delay_ns) <= self.deadline_ns


@dataclass(frozen=True, slots=True)
class Observation:
    """One published frame: when it was captured, how long serving it took, how late it reached the service."""

    t_capture_ns: int
    service_ns: int
    queue_ns: int


@dataclass(frozen=True, slots=True)
class LadderState:
    """Where it stands and what it remembers.

    Attributes:
        rung: index into the ladder; 0 is the best work.
        loads: service time / cost of the last frames under this load, newest last.
        delay_ns: least time from capture to service: the way here, without waiting for another frame.
        overruns: frames in a row whose service would not hold the deadline.
        switched_ns: frames captured before this still suffered from the rung before.
        steady: frames since the load was another one.
        patience: frames of steady load before a rise.
        rose: whether the last switch was a rise under this load.
    """

    rung: int = 0
    loads: tuple[float, ...] = ()
    delay_ns: float = -1.0  # none seen yet
    overruns: int = 0
    switched_ns: int = 0
    steady: int = 0
    patience: int = PATIENCE
    rose: bool = False


def climb(
    state: LadderState, seen: Observation, ladder: Sequence[Rung], deadline: Deadline
) -> tuple[LadderState, str]:
    """The state for the next frame, and why it changed the rung ('' when it did not)."""
    here = ladder[state.rung]
    state = _remember(state, seen, here)
    if len(ladder) == 1 or seen.t_capture_ns < state.switched_ns:
        return state, ""
    overrun = not deadline.holds(seen.service_ns, here.stride, state.delay_ns)
    state = replace(state, overruns=state.overruns + 1 if overrun else 0)
    if overrun:
        return _fall(state, seen, ladder, deadline)
    return _rise(state, seen, ladder, deadline)


def _remember(state: LadderState, seen: Observation, here: Rung) -> LadderState:
    """Add the frame's load; a load that left the window for good starts a new one."""
    loads = (*state.loads, seen.service_ns / here.cost_ns)[-_WINDOW:]
    known_ns = state.delay_ns if state.delay_ns >= 0.0 else seen.queue_ns
    delay_ns = min(seen.queue_ns, known_ns + (seen.queue_ns - known_ns) / _DELAY_MEMORY)
    state = replace(state, loads=loads, delay_ns=delay_ns, steady=state.steady + 1)
    recent, before = loads[-OVERRUNS:], loads[:-OVERRUNS]
    if len(before) < PATIENCE:
        return state
    middle, sigma = _level(before)
    reach = _STEP_DEVIATIONS * sigma
    if min(recent) > middle + reach or max(recent) < middle - reach:
        return replace(state, loads=recent, steady=len(recent), patience=PATIENCE, rose=False)
    return state


def _fall(
    state: LadderState, seen: Observation, ladder: Sequence[Rung], deadline: Deadline
) -> tuple[LadderState, str]:
    late = seen.queue_ns + seen.service_ns > deadline.deadline_ns
    if not late or state.overruns < OVERRUNS or state.rung == len(ladder) - 1:
        return state, ""
    here = ladder[state.rung]
    failed = sum(not deadline.holds(load * here.cost_ns, here.stride, state.delay_ns) for load in state.loads)
    if failed <= (_FAILS_AGAIN if state.rose else _FAILS * deadline.tolerated) * len(state.loads):
        return state, ""
    load = min(state.loads[-state.overruns :])  # falling twice is better than falling too deep and rising
    target = next(
        (
            index
            for index in range(state.rung + 1, len(ladder))
            if deadline.holds(load * ladder[index].cost_ns, ladder[index].stride, state.delay_ns)
        ),
        len(ladder) - 1,
    )
    patience = min(2 * state.patience, _MAX_PATIENCE) if state.rose else state.patience
    reason = (
        f"{state.overruns} frames in a row took {load * ladder[state.rung].cost_ns / 1e6:.1f} ms, "
        f"{load:.2f}x of an idle machine; '{ladder[target].name}' will take "
        f"{load * ladder[target].cost_ns / 1e6:.1f} ms of {deadline.deadline_ns / 1e6:g} ms"
    )
    return _switched(state, seen, target, patience=patience, rose=False), reason


def _rise(
    state: LadderState, seen: Observation, ladder: Sequence[Rung], deadline: Deadline
) -> tuple[LadderState, str]:
    if state.rung == 0 or state.steady < state.patience:
        return state, ""
    load = _upper(state.loads)
    for index in range(state.rung):
        rung = ladder[index]
        if deadline.holds(load * rung.cost_ns, rung.stride, state.delay_ns):
            reason = (
                f"{len(state.loads)} frames at {median(state.loads):.2f}x of an idle machine; "
                f"'{rung.name}' will take "
                f"{load * rung.cost_ns / 1e6:.1f} ms at most of {deadline.deadline_ns / 1e6:g} ms"
            )
            return _switched(state, seen, index, patience=state.patience, rose=True), reason
    return state, ""


def _upper(loads: Sequence[float]) -> float:
    """The load nearly every next frame stays under."""
    middle, sigma = _level(loads)
    return middle + _DEVIATIONS * sigma


def _level(loads: Sequence[float]) -> tuple[float, float]:
    """Median and robust standard deviation: a lone accident moves neither."""
    middle = median(loads)
    sigma = _MAD_TO_SIGMA * median(abs(load - middle) for load in loads)
    return middle, max(sigma, _LEAST_SIGMA * middle)


def _switched(state: LadderState, seen: Observation, rung: int, *, patience: int, rose: bool) -> LadderState:
    done_ns = seen.t_capture_ns + seen.queue_ns + seen.service_ns
    return replace(state, rung=rung, overruns=0, switched_ns=done_ns, steady=0, patience=patience, rose=rose)


@dataclass(frozen=True, slots=True)
class GovernorState:
    """What the next frame is done with.

    Attributes:
        mode: name of the work.
        alert: misses are more than tolerated, and no cheaper work prevented them.
        ladder: where it stands on the ladder, and what it remembers.
    """

    mode: str = "normal"
    alert: bool = False
    ladder: LadderState = field(default_factory=LadderState)

    def is_settled(self, t_capture_ns: int) -> bool:
        """Whether a frame captured then had nothing to do with the mode before."""
        return t_capture_ns >= self.ladder.switched_ns


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of state, published as an event.

    Attributes:
        kind: "mode_changed", "alert_raised" or "alert_cleared".
        before, after: the states.
        reason: one line of text with the numbers of the decision.
    """

    kind: str
    before: GovernorState
    after: GovernorState
    reason: str


def move(
    state: GovernorState, seen: Observation, ladder: Sequence[Rung], deadline: Deadline
) -> tuple[GovernorState, Transition | None]:
    """The state after one published frame, on another rung when cheaper work is needed or better work will hold."""
    where, reason = climb(state.ladder, seen, ladder, deadline)
    after = replace(state, mode=ladder[where.rung].name, ladder=where)
    return after, Transition("mode_changed", state, after, reason) if reason else None


def govern(
    state: GovernorState, judgement: Judgement, budget: LatencyBudget
) -> tuple[GovernorState, Transition | None]:
    """The state after one published frame.

    The alert is raised as soon as the misses exceed the tolerated share of a whole window (also before the window
    is full), and cleared when a full window holds at most half of that share.
    """
    tolerated = budget.max_miss_ratio * budget.window_frames
    if not state.alert and judgement.misses > tolerated:
        return _change("alert_raised", state, replace(state, alert=True), judgement, budget)
    if state.alert and judgement.full and judgement.misses <= tolerated / 2:
        return _change("alert_cleared", state, replace(state, alert=False), judgement, budget)
    return state, None


def _change(
    kind: str, before: GovernorState, after: GovernorState, judgement: Judgement, budget: LatencyBudget
) -> tuple[GovernorState, Transition]:
    reason = (
        f"{judgement.misses} of the last {judgement.frames} frames were older than "
        f"{budget.deadline_ns / 1e6:g} ms; {budget.max_miss_ratio:.0%} of {budget.window_frames} are tolerated"
    )
    return after, Transition(kind, before, after, reason)
