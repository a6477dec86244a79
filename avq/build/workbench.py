"""The workbench a strategy decides on: statistics, errors and times of this model, data and target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from avq.build.frontend import Understood
from avq.build.lower import lower
from avq.build.probe_set import ProbeSet
from avq.hookspecs import CalibrationStats, Engine
from avq.progress import Reporter
from avq.types import (
    Latency,
    MomentRequest,
    PlanScore,
    QuantizationPlan,
    SessionOptions,
    StatRequest,
)
from avq.types.frame import F64

Collect = Callable[[Sequence[str]], CalibrationStats]
Moments = Callable[[Sequence[str]], Mapping[str, F64]]
Time = Callable[[QuantizationPlan], "Latency | None"]


@dataclass
class HostWorkbench:
    """The host's side of the Workbench protocol.

    Attributes:
        understood: the folded float model with its head and preprocessing.
        probe_set: held-out pictures with float answers.
        reference: the engine whose unoptimised run defines what a lowered model means.
        keep_float: nodes that stay float, with reasons.
        symmetric_only: the target takes signed grids with zero point 0 only.
        threads: compute threads for probing.
    """

    understood: Understood
    probe_set: ProbeSet
    reference: Engine
    keep_float: Mapping[str, str]
    symmetric_only: bool
    threads: int
    report: Reporter
    _collect: Collect
    _moments: Moments
    _time: Time
    notes: list[tuple[str, list[Mapping[str, object]]]] = field(default_factory=list)
    _scores: dict[str, PlanScore] = field(default_factory=dict)

    def collect(self, requests: Sequence[StatRequest]) -> CalibrationStats:
        return self._collect([request.tensor for request in requests])

    def moments(self, requests: Sequence[MomentRequest]) -> Mapping[str, F64]:
        return self._moments([request.tensor for request in requests])

    def error(self, plan: QuantizationPlan) -> PlanScore:
        if plan.digest not in self._scores:
            model = lower(self.understood.model.proto, plan, reference_encoding(plan))
            session = self.reference.open(model, SessionOptions(threads=self.threads, optimise=False))
            try:
                self._scores[plan.digest] = self.probe_set.score(session)
            finally:
                session.close()
        return self._scores[plan.digest]

    def latency(self, plan: QuantizationPlan) -> Latency | None:
        return self._time(plan)

    def note(self, title: str, rows: Sequence[Mapping[str, object]]) -> None:
        self.notes.append((title, list(rows)))
        self.report.table(title, rows)


def reference_encoding(plan: QuantizationPlan) -> str:
    """The encoding that defines the plan's numbers; the others are compared with it."""
    return "s8" if plan.symmetric else "asymmetric"
