"""Loss of accuracy by each width of each group, predicted from one measurement per group.

A group's rounding errors reach the outputs through the same layers whatever its width, so the noise there grows
with the squared error of its weights: it is measured at one width and scaled to the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from avq.types import F64, PlanScore, QuantizationPlan
from avq_lowbit.plans import FLOAT, Plans

# Wide enough that errors still add, narrow enough to exceed the rounding of the runtime.
PROBE_BITS = 3
_NATIVE_PROBE_BITS = 4


def damages(plans: Plans, pictures: int, probes: int) -> F64:
    """Predict the noise power over signal power at the worst output, for each group alone.

    Returns:
        (groups, widths); inf where the target does not support that width.
    """
    probed = probe_noise(plans, pictures, probes)
    at_probe = np.array([plans.squared_error(g, _probe_bits(plans)) for g in plans.groups])
    errors = np.array(
        [
            [plans.squared_error(g, b) if plans.allowed(g, b) else np.inf for b in plans.widths]
            for g in plans.groups
        ]
    )
    noise: F64 = (probed / np.maximum(at_probe, 1e-30))[:, None] * np.where(np.isfinite(errors), errors, 0.0)
    return np.where(np.isfinite(errors), noise, np.inf)


def _probe_bits(plans: Plans) -> int:
    return _NATIVE_PROBE_BITS if plans.native else PROBE_BITS


def probe_noise(plans: Plans, pictures: int, probes: int) -> F64:
    """Measure the noise power with one group at few bits, corrected, and all others float.

    In networks with more groups than ``probes``, runs of neighbours are measured together and share the result by
    squared weight error.

    Returns:
        (groups,) noise power; 0 where the width is not allowed.
    """
    few, count = _probe_bits(plans), len(plans.groups)
    open_to = [i for i, group in enumerate(plans.groups) if plans.allowed(group, few)]
    _at(plans, open_to)  # solves every layer's rounding in as few passes over the pictures as memory allows
    longest = max(-(-len(open_to) // probes), 1)
    powers = np.zeros(count)
    for start in range(0, len(open_to), longest):
        run = open_to[start : start + longest]
        errors = np.array([plans.squared_error(plans.groups[i], few) for i in run])
        noise = noise_of(plans.bench.error(_at(plans, run), pictures=pictures))
        powers[run] = noise * errors / max(float(errors.sum()), 1e-30)
    return powers


def _at(plans: Plans, groups: Sequence[int]) -> QuantizationPlan:
    """Return the plan with these groups at few bits and all others float."""
    few = _probe_bits(plans)
    return plans.plan(tuple(few if i in groups else FLOAT for i in range(len(plans.groups))))


def noise_of(score: PlanScore) -> float:
    """Return noise power over signal power at the worst output."""
    worst_db = min(score.sqnr_db.values(), default=float("inf"))
    return float(10.0 ** (-worst_db / 10.0))


def walk(damage: F64, size: F64) -> list[tuple[int, ...]]:
    """Return every state from all groups at their first width to all at their last, one reduction at a time.

    The next reduction is always the one that adds the least error per saved byte. Errors of groups add, as
    independent noise does. A reduction without added error comes first; among equals the earlier group.

    Args:
        damage: (groups, widths) predicted error of each group alone at each width; inf for widths that a group may
            not have.
        size: (groups, widths) bytes, falling along a row.

    Returns:
        States: per group an index into the widths.
    """
    groups, widths = damage.shape
    state = np.zeros(groups, int)
    path = [tuple(state.tolist())]
    while True:
        here = np.arange(groups)
        following = np.minimum(state + 1, widths - 1)
        added = np.maximum(damage[here, following] - damage[here, state], 0.0)
        saved = size[here, state] - size[here, following]
        price = np.where((state < widths - 1) & np.isfinite(added), added / np.maximum(saved, 1e-9), np.inf)
        best = int(np.argmin(price))
        if not np.isfinite(price[best]):
            return path
        state[best] += 1
        path.append(tuple(state.tolist()))


def spaced(sizes: Sequence[float], count: int) -> list[int]:
    """Return at most ``count`` indices of falling ``sizes``, evenly spaced in the logarithm, both ends included."""
    logs = np.log(np.asarray(sizes, np.float64))
    targets = np.linspace(logs[0], logs[-1], count)
    return sorted({int(np.argmin(np.abs(logs - target))) for target in targets})
