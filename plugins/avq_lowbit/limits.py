"""What a plan may lose: the user's limit, or else the gate's own."""

from __future__ import annotations

from dataclasses import dataclass, replace

from avq import Workbench
from avq.types import Latency, PlanScore

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
