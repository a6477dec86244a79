"""Loss of accuracy by each group alone in integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from avq.types import F64, PlanScore
from avq_mixed.groups import Group
from avq_mixed.maps import Maps


@dataclass(frozen=True)
class Sensitivity:
    """One group in INT8, all others float, against the float model.

    Attributes:
        noise: power of the error at the worst output over the power of the signal.
        badness: boxes lost and confidence shift.
    """

    noise: float
    badness: float


def sensitivity_of(score: PlanScore) -> Sensitivity:
    worst_db = min(score.sqnr_db.values(), default=float("inf"))
    return Sensitivity(float(10.0 ** (-worst_db / 10.0)), score.badness)


def measure(maps: Maps, pictures: int, probes: int) -> list[Sensitivity]:
    """Measure one sensitivity per group, with about ``probes`` error measurements at most.

    In networks with more groups, runs of neighbours of one kind are measured together and share the result.
    """
    longest = -(-len(maps.groups) // probes)
    sensitivities: list[Sensitivity] = []
    runs = neighbours(maps.groups, longest)
    scores = maps.errors([np.isin(np.arange(len(maps.groups)), run) for run in runs], pictures)
    for run, score in zip(runs, scores, strict=True):
        whole = sensitivity_of(score)
        sensitivities += [Sensitivity(whole.noise / len(run), whole.badness / len(run))] * len(run)
    return sensitivities


def neighbours(groups: Sequence[Group], longest: int) -> list[list[int]]:
    """Return runs of consecutive groups of one kind, at most ``longest`` indices each."""
    runs: list[list[int]] = []
    for index, group in enumerate(groups):
        alike = bool(runs) and groups[runs[-1][0]].kind == group.kind
        if alike and len(runs[-1]) < longest:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


def damages(measured: Sequence[Sensitivity]) -> F64:
    """Return one additive number per group, (groups,), with sum 1.

    Independent rounding errors add in power, so noise powers add. Boxes show which noise matters, but one group
    seldom loses a box. Neither ranks well alone, so both have half the weight.
    """
    noise = _share(np.array([m.noise for m in measured], np.float64))
    boxes = _share(np.array([m.badness for m in measured], np.float64))
    return (noise + boxes) / 2.0


def _share(values: F64) -> F64:
    values = np.maximum(np.nan_to_num(values, posinf=1e6), 0.0)
    total = float(values.sum())
    return values / total if total > 0.0 else np.full(values.shape, 1.0 / max(values.size, 1))
