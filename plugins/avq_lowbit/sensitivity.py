"""What each width of each group costs in accuracy, predicted from one judgement per group.

A group's rounding errors reach the outputs through the same layers whatever its width, so the noise there grows
with the squared error of its weights: it is measured at one width and scaled to the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from avq.types import F64, PlanScore
from avq_lowbit.grids import squared_error
from avq_lowbit.groups import WIDTHS
from avq_lowbit.plans import FLOAT, Bits, Plans

# Wide enough that errors still add, narrow enough to be seen over the runtime's own rounding.
PROBE_BITS = 3


def damages(plans: Plans, pictures: int, probes: int) -> F64:
    """(groups, widths) predicted noise power over signal power at the worst output, each group alone."""
    probed = probe_noise(plans, pictures, probes)
    errors = np.array([_errors(plans, i) for i in range(len(plans.groups))])
    at_probe = errors[:, WIDTHS.index(PROBE_BITS)]
    scaled: F64 = errors * (probed / np.maximum(at_probe, 1e-30))[:, None]
    return scaled


def _errors(plans: Plans, index: int) -> list[float]:
    group = plans.groups[index]
    return [squared_error(plans.array(group), plans.weight_point(group, bits)) for bits in WIDTHS]


def probe_noise(plans: Plans, pictures: int, probes: int) -> F64:
    """(groups,) noise power with one group alone in PROBE_BITS, all else float.

    Networks with more groups than ``probes`` are judged in runs of neighbours, each of which gets its share
    by squared weight error.
    """
    count = len(plans.groups)
    longest = -(-count // probes)
    found = np.zeros(count)
    for start in range(0, count, longest):
        run = range(start, min(start + longest, count))
        errors = np.array([_errors(plans, i)[WIDTHS.index(PROBE_BITS)] for i in run])
        noise = noise_of(plans.error(_only(count, run), pictures))
        found[run.start : run.stop] = noise * errors / max(float(errors.sum()), 1e-30)
    return found


def noise_of(score: PlanScore) -> float:
    """Noise power over signal power at the worst output."""
    worst_db = min(score.sqnr_db.values(), default=float("inf"))
    return float(10.0 ** (-worst_db / 10.0))


def _only(count: int, inside: Sequence[int]) -> Bits:
    return tuple(PROBE_BITS if i in inside else FLOAT for i in range(count))
