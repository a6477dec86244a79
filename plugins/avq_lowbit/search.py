"""How far down the walk the limit reaches: points of it, really judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from avq.types import PlanScore, QuantizationPlan
from avq_lowbit.limits import Limits, loss
from avq_lowbit.plans import Bits
from avq_lowbit.walk import spaced

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
