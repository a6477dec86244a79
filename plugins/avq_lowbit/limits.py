"""What a plan may lose: the user's limit, or else the gate's own."""

from __future__ import annotations

from dataclasses import dataclass

from avq import Workbench
from avq.types import Latency, PlanScore

_LOST_PERCENT = 1.0
_CONFIDENCE_SHIFT = 0.02
_SLOWDOWN = 1.02
_SQNR_DB = 20.0
# Loss is judged on a few hundred boxes: aim inside the limit.
_MARGIN = 0.9


@dataclass(frozen=True)
class Limits:
    """Aims inside what the gate accepts.

    Attributes:
        lost_percent: of the float model's boxes.
    """

    lost_percent: float = _LOST_PERCENT

    @classmethod
    def of(cls, bench: Workbench) -> Limits:
        return cls() if bench.max_drop is None else cls(bench.max_drop)

    def accurate(self, score: PlanScore) -> bool:
        fidelity = score.fidelity
        if fidelity is None:
            return min(score.sqnr_db.values(), default=0.0) >= _SQNR_DB
        shift = abs(fidelity.confidence_shift)
        return 100.0 * fidelity.lost <= _MARGIN * self.lost_percent and shift <= _MARGIN * _CONFIDENCE_SHIFT

    def fast(self, latency: Latency) -> bool:
        return latency.ratio_low <= _SLOWDOWN

    def line(self, score: PlanScore) -> float | None:
        """The limit on the chart's axis; see ``loss``."""
        return None if score.fidelity is None else self.lost_percent


def loss(score: PlanScore) -> float:
    """Percent of boxes lost; without a decoder, percent of noise in the worst output's signal."""
    if score.fidelity is not None:
        return 100.0 * score.fidelity.lost
    return float(100.0 * 10.0 ** (-min(score.sqnr_db.values(), default=0.0) / 20.0))
