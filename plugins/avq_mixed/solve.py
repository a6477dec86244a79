"""The best precision maps of a cost model, solved exactly: a 0-1 linear programme with edge terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from avq.toolbox import STANDARD_OUTPUT, suppress_output
from avq.types import F64, AnyArray
from avq_mixed.fit import CostModel
from avq_mixed.groups import OUTSIDE

_SECONDS = 5.0
# Damage is very uneven: each step of the front allows a third of the one before, roughly.
_STEP = 0.35
_NEARLY_LEAST = 1.5


@dataclass(frozen=True)
class Problem:
    """Costs and damages that precision maps are solved for.

    Attributes:
        cost: prediction of time.
        damage: (groups,) additive loss of accuracy in INT8.
        share: (groups,) share of the multiply-adds.
    """

    cost: CostModel
    damage: F64
    share: F64


def fastest(problem: Problem, *, max_damage: float = np.inf, min_share: float = 0.0) -> AnyArray | None:
    """Return the map of least time within both limits, (groups,) bool; None when there is none."""
    cost = problem.cost
    objective = np.concatenate([cost.group, cost.up, cost.down])
    return _solve(problem, objective, max_damage, min_share)


def gentlest(problem: Problem, *, min_share: float) -> AnyArray | None:
    """Return the map of least damage with that share of the multiply-adds in INT8, (groups,) bool."""
    objective = np.concatenate([problem.damage, np.zeros(2 * len(problem.cost.boundaries))])
    return _solve(problem, objective, np.inf, min_share)


def _solve(problem: Problem, objective: F64, max_damage: float, min_share: float) -> AnyArray | None:
    """Solve the 0-1 programme.

    Variables: one 0-1 per group, and one number per boundary and direction, at least the difference of its ends. As a
    crossing never has a negative cost, the optimum has them exactly there.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    groups, edges = problem.damage.size, len(problem.cost.boundaries)
    nothing = np.zeros(2 * edges)
    constraints = [
        LinearConstraint(np.concatenate([problem.damage, nothing])[None], -np.inf, max_damage),
        LinearConstraint(np.concatenate([problem.share, nothing])[None], min_share, np.inf),
    ]
    if edges:
        constraints.append(LinearConstraint(_edge_rows(problem.cost, groups), -np.inf, 0.0))
    with suppress_output(STANDARD_OUTPUT):  # the solver prints even with its display off
        solved = milp(
            objective,
            integrality=np.concatenate([np.ones(groups), nothing]),
            bounds=Bounds(0.0, 1.0),
            constraints=constraints,
            options={"time_limit": _SECONDS},
        )
    return None if solved.x is None else np.asarray(solved.x[:groups] > 0.5)


def _edge_rows(cost: CostModel, groups: int) -> object:
    """Return the rows reader - writer <= up and writer - reader <= down of every boundary."""
    from scipy.sparse import lil_matrix

    edges = len(cost.boundaries)
    rows = lil_matrix((2 * edges, groups + 2 * edges))
    for i, edge in enumerate(cost.boundaries):
        for row, sign in ((i, 1.0), (edges + i, -1.0)):
            if edge.reader != OUTSIDE:
                rows[row, edge.reader] = sign
            if edge.writer != OUTSIDE:
                rows[row, edge.writer] = -sign
            rows[row, groups + row] = -1.0
    return rows.tocsr()


def candidates(
    problem: Problem, steps: int, shares: Sequence[float], least_share: float = 0.0
) -> list[AnyArray]:
    """Return the maps to build: the predicted front from the fastest map towards float, then maps with much INT8.

    No map has less than ``least_share`` of the groups' multiply-adds in INT8.
    """
    maps = [fastest(problem, min_share=least_share)]
    peak = float(problem.damage @ maps[0]) if maps[0] is not None else 0.0
    maps += [fastest(problem, max_damage=peak * _STEP**i, min_share=least_share) for i in range(1, steps)]
    maps += [
        _much_int8(problem, share) for share in sorted({least_share, *shares}) if 0.0 < share >= least_share
    ]
    unique = {tuple(m.tolist()): m for m in maps if m is not None and m.any()}
    return list(unique.values())


def _much_int8(problem: Problem, share: float) -> AnyArray | None:
    """Return the fastest map with that share in INT8 whose damage is close to the least possible."""
    gentle = gentlest(problem, min_share=share)
    if gentle is None:
        return None
    least = float(problem.damage @ gentle)
    return fastest(problem, max_damage=_NEARLY_LEAST * least, min_share=share)
