"""Why each group is what it is, in numbers."""

from __future__ import annotations

from collections.abc import Sequence

from avq.types import AnyArray, GroupRow
from avq_mixed.costs import crossings
from avq_mixed.fit import Counted
from avq_mixed.groups import Group
from avq_mixed.sensitivity import Sensitivity
from avq_mixed.solve import Problem


def group_rows(
    groups: Sequence[Group],
    measured: Sequence[Sensitivity],
    problem: Problem,
    int8: AnyArray,
    counted: Counted | None,
) -> list[GroupRow]:
    """One row per group, in graph order; ``counted`` is each group's time in context."""
    reasons = group_reasons(groups, problem, int8)
    crossing = _crossing_costs(problem, int8)
    return [
        GroupRow(
            name=group.name,
            kind=group.kind,
            precision="int8" if int8[index] else "fp32",
            reason=reasons[group.name],
            nodes=len(group.nodes),
            sensitivity=measured[index].badness,
            float_ns=int(counted.float_ns[index]) if counted else None,
            int8_ns=int(counted.int8_ns[index]) if counted else None,
            int8_gain=float(problem.cost.group[index]),
            boundary=crossing[index],
        )
        for index, group in enumerate(groups)
    ]


def group_reasons(groups: Sequence[Group], problem: Problem, int8: AnyArray) -> dict[str, str]:
    """group -> why it is INT8 or float in ``int8``, against the same map with this group turned over."""
    here = problem.cost.predict(int8)
    reasons = {}
    for index, group in enumerate(groups):
        turned = int8.copy()
        turned[index] = not turned[index]
        change = 100 * (problem.cost.predict(turned) - here)
        share = 100 * problem.damage[index]
        other, verb = ("float", "spare") if int8[index] else ("INT8", "add")
        reasons[group.name] = (
            f"{group.kind}: {other} would take {change:+.2f} % time and {verb} {share:.1f} % of the damage"
        )
    return reasons


def _crossing_costs(problem: Problem, int8: AnyArray) -> list[float]:
    """Per group, what its own inputs' boundaries cost in ``int8``, as a share of the float time."""
    up, down = crossings(problem.cost.boundaries, int8)
    paid = problem.cost.up * up + problem.cost.down * down
    costs = [0.0] * len(int8)
    for boundary, cost in zip(problem.cost.boundaries, paid, strict=True):
        if boundary.reader >= 0:
            costs[boundary.reader] += float(cost)
    return costs
