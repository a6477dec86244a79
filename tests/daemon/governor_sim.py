"""Generated load traces, the camera and queue around the ladder on a virtual clock, and an oracle.

A trace is piecewise constant: each segment (a dwell of at least 120 frames) multiplies every rung's cost by one
load, each frame by its own jitter. The oracle knows every segment and stands on its best rung from the first
frame on; cost = late frames + 0.2 x frames below the best rung that holds the segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from avq.daemon.governor import Deadline, LadderState, Observation, Rung, climb

BELOW_COST = 0.2
PERIOD_NS = 33_333_333


@dataclass(frozen=True)
class Trace:
    """One generated run: the ladder, the deadline, a load per segment, a load factor per camera frame."""

    ladder: tuple[Rung, ...]
    deadline: Deadline
    segments: tuple[tuple[int, float], ...]  # (camera frames, load)
    jitter: np.ndarray

    @property
    def loads(self) -> np.ndarray:
        return np.repeat([load for _, load in self.segments], [n for n, _ in self.segments]) * self.jitter


@dataclass(frozen=True)
class Served:
    """One published frame: its number, segment, rung, whether it was late, and the switch after it."""

    frame: int
    segment: int
    rung: int
    late: bool
    switch: int  # -1 up to better work, +1 down to cheaper work, 0 none


def generate(seed: int) -> Trace:
    """A ladder of 2 to 5 rungs, each 0.4 to 0.75 of the one before, and 3 to 10 dwells of 120 to 600 frames."""
    rng = np.random.default_rng(seed)
    deadline = Deadline(PERIOD_NS * rng.uniform(0.8, 2.5), PERIOD_NS)
    cost = rng.uniform(0.25, 0.8) * min(deadline.deadline_ns, PERIOD_NS)
    rungs = [Rung("best", cost)]
    for index in range(int(rng.integers(1, 5))):
        cost *= rng.uniform(0.4, 0.75)
        rungs.append(Rung(f"rung {index + 1}", cost))
    worst = deadline.deadline_ns / cost
    segments = tuple(
        (int(rng.integers(120, 600)), float(np.exp(rng.uniform(0.0, np.log(1.3 * worst)))))
        for _ in range(int(rng.integers(3, 11)))
    )
    frames = sum(n for n, _ in segments)
    jitter = np.exp(rng.normal(0.0, rng.uniform(0.005, 0.06), frames))
    jitter *= np.where(rng.random(frames) < rng.uniform(0.0, 0.01), rng.uniform(1.5, 4.0), 1.0)  # accidents
    return Trace(tuple(rungs), deadline, segments, jitter)


def serve(trace: Trace, choose: Sequence[int] | None = None) -> list[Served]:
    """Newest frame wins, one at a time; on the ladder, or on the rung per segment that ``choose`` names."""
    loads, state = trace.loads, LadderState()
    segment_of = np.repeat(np.arange(len(trace.segments)), [n for n, _ in trace.segments])
    free_ns, frame, served = 0.0, 0, []
    while frame < len(loads):
        segment = int(segment_of[frame])
        rung = state.rung if choose is None else choose[segment]
        captured_ns = frame * PERIOD_NS
        start_ns = max(free_ns, captured_ns)
        service_ns = loads[frame] * trace.ladder[rung].cost_ns
        free_ns = start_ns + service_ns
        late = free_ns - captured_ns > trace.deadline.deadline_ns
        switch = 0
        if choose is None:
            seen = Observation(captured_ns, int(service_ns), int(start_ns - captured_ns))
            state, _ = climb(state, seen, trace.ladder, trace.deadline)
            switch = int(np.sign(state.rung - rung))
        served.append(Served(frame, segment, rung, bool(late), switch))
        frame = max(frame + 1, int(free_ns // PERIOD_NS))
    return served


def best_rungs(trace: Trace) -> list[int]:
    """Per segment the best rung that is late no more often than tolerated; the cheapest when none is."""
    late = []
    for rung in range(len(trace.ladder)):
        served = serve(trace, [rung] * len(trace.segments))
        late.append([_late_share(served, s) for s in range(len(trace.segments))])
    last = len(trace.ladder) - 1
    return [
        next((r for r in range(last) if late[r][s] <= trace.deadline.tolerated), last)
        for s in range(len(trace.segments))
    ]


def _late_share(served: Sequence[Served], segment: int) -> float:
    """Without the first frames, which still wait for the segment before."""
    inside = [s.late for s in served if s.segment == segment][2:]
    return sum(inside) / max(len(inside), 1)


def cost(served: Sequence[Served], best: Sequence[int]) -> float:
    return sum(s.late + BELOW_COST * (s.rung > best[s.segment]) for s in served)


def detection_frames(served: Sequence[Served], trace: Trace, best: Sequence[int]) -> list[int]:
    """Published frames from the start of each sustained overrun to the switch down, that one included."""
    found = []
    for segment in range(1, len(trace.segments)):
        inside = [s for s in served if s.segment == segment]
        if not inside or inside[0].rung >= best[segment]:
            continue
        load, rung = trace.segments[segment][1], trace.ladder[inside[0].rung]
        if load * rung.cost_ns <= 1.3 * trace.deadline.deadline_ns:
            continue  # jitter decides which frames overrun: not a sustained overrun
        found.append(next((n for n, s in enumerate(inside, 1) if s.switch > 0), len(inside)))
    return found


def opposite_switches(served: Sequence[Served], segments: int) -> int:
    """Dwells in which the ladder went both ways."""
    return sum(
        {1, -1} <= {s.switch for s in served if s.segment == segment and s.switch}
        for segment in range(segments)
    )


@dataclass
class Total:
    """Sums over traces."""

    cost: float = 0.0
    oracle_cost: float = 0.0
    frames: int = 0
    dwells: int = 0
    opposite_switches: int = 0
    slowest_detection_frames: int = 0
    fitting_frames: int = 0
    fitting_in_budget: int = 0
    fitting_cost: float = 0.0
    fitting_oracle_cost: float = 0.0

    @property
    def in_budget_share(self) -> float:
        """Of the frames in dwells that the cheapest rung holds."""
        return self.fitting_in_budget / max(self.fitting_frames, 1)


def judged(seeds: Iterable[int]) -> Total:
    """The ladder and the oracle on these traces."""
    total = Total()
    for seed in seeds:
        trace = generate(seed)
        best = best_rungs(trace)
        served, ideal = serve(trace), serve(trace, best)
        total.cost += cost(served, best)
        total.oracle_cost += cost(ideal, best)
        total.frames += len(served)
        total.dwells += len(trace.segments)
        total.opposite_switches += opposite_switches(served, len(trace.segments))
        total.slowest_detection_frames = max(
            [total.slowest_detection_frames, *detection_frames(served, trace, best)]
        )
        _add_fitting(total, trace, best, served, ideal)
    return total


def _add_fitting(
    total: Total, trace: Trace, best: Sequence[int], served: Sequence[Served], ideal: Sequence[Served]
) -> None:
    last = len(trace.ladder) - 1
    cheapest = serve(trace, [last] * len(trace.segments))
    for segment in range(len(trace.segments)):
        if _late_share(cheapest, segment) > 0.05:
            continue
        inside = [s for s in served if s.segment == segment]
        total.fitting_frames += len(inside)
        total.fitting_in_budget += sum(not s.late for s in inside)
        total.fitting_cost += cost(inside, best)
        total.fitting_oracle_cost += cost([s for s in ideal if s.segment == segment], best)
