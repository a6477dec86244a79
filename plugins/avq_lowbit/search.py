"""Search for the smallest measured point of the walk inside the limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from avq import Workbench
from avq.types import Latency, PlanScore, QuantizationPlan
from avq_lowbit.plans import Bits
from avq_lowbit.sensitivity import spaced

# Limits on the loss of a plan: the user's, or else the gate's own.

_LOST_PERCENT = 1.0
_MAP_PERCENT = 2.0
_CONFIDENCE_SHIFT = 0.02
_SLOWDOWN = 1.02
_SQNR_DB = 20.0
# Loss is measured on a few hundred boxes: aim inside the limit.
_MARGIN = 0.9
# Few bits shift boxes before they lose them, which only mAP shows: without labels and without a limit by the user,
# stay well inside. Measured on the built-in detector: 2.3 % of mAP lost at 0.9, 500 scenes.
_OWN_MARGIN = 0.5


@dataclass(frozen=True)
class Limits:
    """Limits inside those of the gate.

    Attributes:
        lost_percent: largest loss in percent of the float model's boxes.
        map_percent: largest loss in percent of its mAP, with labels.
        margin: share of the limits on boxes that a plan may use.
    """

    lost_percent: float = _LOST_PERCENT
    map_percent: float = _MAP_PERCENT
    margin: float = _OWN_MARGIN

    @classmethod
    def of(cls, bench: Workbench) -> Limits:
        return cls() if bench.max_drop is None else cls(bench.max_drop, bench.max_drop, _MARGIN)

    @property
    def halved(self) -> Limits:
        return replace(self, margin=self.margin / 2, map_percent=self.map_percent / 2)

    @property
    def as_served(self) -> Limits:
        """Limits for a chosen point on its engine, whose float parts round as well."""
        return replace(self, margin=max(self.margin, _MARGIN))

    @property
    def aim_percent(self) -> float:
        """Largest percentage of lost boxes."""
        return self.margin * self.lost_percent

    def accurate(self, score: PlanScore) -> bool:
        """Return True inside the limit: by mAP with labels, as the gate; else by boxes, else by noise."""
        if score.map_drop_percent is not None:
            return score.map_drop_percent <= _MARGIN * self.map_percent
        fidelity = score.fidelity
        if fidelity is None:
            return min(score.sqnr_db.values(), default=0.0) >= _SQNR_DB
        shift = abs(fidelity.confidence_shift)
        return 100.0 * fidelity.lost <= self.aim_percent and shift <= self.margin * _CONFIDENCE_SHIFT

    def fast(self, latency: Latency) -> bool:
        return latency.ratio_low <= _SLOWDOWN

    def line(self, score: PlanScore) -> float | None:
        """Return the limit on the axis of the chart; see ``loss``."""
        return None if score.fidelity is None else self.aim_percent


def loss(score: PlanScore) -> float:
    """Return the percent of boxes lost; without a decoder, noise of the worst output in percent of its signal."""
    if score.fidelity is not None:
        return 100.0 * score.fidelity.lost
    return float(100.0 * 10.0 ** (-min(score.sqnr_db.values(), default=0.0) / 20.0))


# The curve stops at this loss.
_RUINED_PERCENT = 40.0


@dataclass(frozen=True)
class Step:
    """One corrected and measured point of the walk.

    Attributes:
        index: number of reductions since all weights had 8 bits.
        bits: width of each group.
        size: bytes of all constants in the file.
        plan: the corrected plan.
        score: its error.
    """

    index: int
    bits: Bits
    size: int
    plan: QuantizationPlan
    score: PlanScore


@dataclass
class Search:
    """Measurements of points of one path, each once.

    Attributes:
        path: states of the walk.
        sizes: bytes of each state.
        judge: returns the corrected plan of a state and its error.
        limits: on the loss.
        measured: steps by index.
    """

    path: Sequence[Bits]
    sizes: Sequence[int]
    judge: Callable[[Bits], tuple[QuantizationPlan, PlanScore]]
    limits: Limits
    measured: dict[int, Step] = field(default_factory=dict)

    def at(self, index: int) -> Step:
        if index not in self.measured:
            bits = self.path[index]
            self.measured[index] = Step(index, bits, self.sizes[index], *self.judge(bits))
        return self.measured[index]

    @property
    def steps(self) -> list[Step]:
        return [self.measured[index] for index in sorted(self.measured)]

    def sketch(self, points: int) -> None:
        """Measure points along the curve until the loss is too large."""
        for index in spaced(self.sizes, points):
            if loss(self.at(index).score) >= _RUINED_PERCENT:
                return

    def narrow(self, rounds: int) -> None:
        """Bisect between the last accurate point and the first inaccurate one after it."""
        for _ in range(rounds):
            good = [s.index for s in self.steps if self.limits.accurate(s.score)]
            last = max(good, default=0)
            bad = [s.index for s in self.steps if s.index > last]
            if not bad or min(bad) - last < 2:
                return
            self.at((last + min(bad)) // 2)

    def within(self, size: int) -> Step:
        """Return the first point of at most ``size`` bytes, else the smallest one."""
        fits = [i for i, s in enumerate(self.sizes) if s <= size]
        return self.at(fits[0] if fits else len(self.path) - 1)

    def accurate(self) -> list[Step]:
        """Return the measured points inside the limit, smallest first."""
        good = [s for s in self.measured.values() if self.limits.accurate(s.score)]
        return sorted(good, key=lambda s: s.size)
