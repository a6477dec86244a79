"""How far down the walk the limit reaches: points of it, really judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from avq import Workbench
from avq.types import Latency, PlanScore, QuantizationPlan
from avq_lowbit.plans import Bits
from avq_lowbit.sensitivity import spaced

# What a plan may lose: the user's limit, or else the gate's own.

_LOST_PERCENT = 1.0
_MAP_PERCENT = 2.0
_CONFIDENCE_SHIFT = 0.02
_SLOWDOWN = 1.02
_SQNR_DB = 20.0
# Loss is judged on a few hundred boxes: aim inside the limit.
_MARGIN = 0.9
# Few bits move boxes before they lose them, which shows in mAP only: without labels and without a limit of the
# user's, stay well inside. Measured on the built-in detector: 2.3 % of mAP lost at 0.9, 500 scenes.
_OWN_MARGIN = 0.5


@dataclass(frozen=True)
class Limits:
    """Aims inside what the gate accepts.

    Attributes:
        lost_percent: of the float model's boxes.
        map_percent: of its mAP, where labels were given.
        margin: share of the limits on boxes that may be used.
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
        """What a point chosen well inside may show on its engine, whose float parts round as well."""
        return replace(self, margin=max(self.margin, _MARGIN))

    @property
    def aim_percent(self) -> float:
        """Lost boxes that are not exceeded."""
        return self.margin * self.lost_percent

    def accurate(self, score: PlanScore) -> bool:
        """By labels where the score has them, as the gate does; else by boxes, else by noise."""
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
        """The aim on the chart's axis; see ``loss``."""
        return None if score.fidelity is None else self.aim_percent


def loss(score: PlanScore) -> float:
    """Percent of boxes lost; without a decoder, percent of noise in the worst output's signal."""
    if score.fidelity is not None:
        return 100.0 * score.fidelity.lost
    return float(100.0 * 10.0 ** (-min(score.sqnr_db.values(), default=0.0) / 20.0))


# Nobody wants to see the curve below this.
_RUINED_PERCENT = 40.0


@dataclass(frozen=True)
class Step:
    """One point of the walk, corrected and judged.

    Attributes:
        index: reductions since all weights had 8 bits.
        size: bytes of all constants in the file.
    """

    index: int
    bits: Bits
    size: int
    plan: QuantizationPlan
    score: PlanScore


@dataclass
class Search:
    """Judges points of one path, each once.

    Attributes:
        path: states of the walk.
        sizes: bytes of each.
        judge: makes the corrected plan of a state and judges it.
    """

    path: Sequence[Bits]
    sizes: Sequence[int]
    judge: Callable[[Bits], tuple[QuantizationPlan, PlanScore]]
    limits: Limits
    seen: dict[int, Step] = field(default_factory=dict)

    def at(self, index: int) -> Step:
        if index not in self.seen:
            bits = self.path[index]
            self.seen[index] = Step(index, bits, self.sizes[index], *self.judge(bits))
        return self.seen[index]

    @property
    def steps(self) -> list[Step]:
        return [self.seen[index] for index in sorted(self.seen)]

    def sketch(self, points: int) -> None:
        """The curve, until it is ruined."""
        for index in spaced(self.sizes, points):
            if loss(self.at(index).score) >= _RUINED_PERCENT:
                return

    def narrow(self, rounds: int) -> None:
        """Halve the stretch between the last accurate point before a bad one, and that one."""
        for _ in range(rounds):
            good = [s.index for s in self.steps if self.limits.accurate(s.score)]
            last = max(good, default=0)
            bad = [s.index for s in self.steps if s.index > last]
            if not bad or min(bad) - last < 2:
                return
            self.at((last + min(bad)) // 2)

    def within(self, size: int) -> Step:
        """The first point of at most ``size`` bytes; the smallest there is when none is."""
        fits = [i for i, s in enumerate(self.sizes) if s <= size]
        return self.at(fits[0] if fits else len(self.path) - 1)

    def accurate(self) -> list[Step]:
        """Judged points inside the limit, smallest first."""
        good = [s for s in self.seen.values() if self.limits.accurate(s.score)]
        return sorted(good, key=lambda s: s.size)
