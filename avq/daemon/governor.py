"""Decides, frame by frame, what to do about a missed latency budget. A pure state machine: no clock, no I/O.

First cheaper work (the ladder of modes), and where that does not help, an alert. A decision is data, and the same
frames give the same decisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from avq.daemon.ladder import Deadline, LadderState, Observation, Rung, climb
from avq.daemon.latency import Judgement
from avq.types import LatencyBudget


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
    """A change of state, told to sinks as an event.

    Attributes:
        kind: "mode_changed", "alert_raised" or "alert_cleared".
        before, after: the states.
        reason: in words, with the numbers it was decided on.
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
