"""A plan with its measured score, and what counts as measurably better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from avq.types import PlanScore, QuantizationPlan
from avq_static.assemble import Choice

#: A share of lost boxes plus confidence shift below this is noise of a few hundred boxes.
_MARGIN = 0.003
#: So is this much of the noisiest output, in decibel.
_MARGIN_DB = 0.5
#: From here on the noisiest output is as good as float: a thousandth of its power.
_CLEAN_DB = 30.0


@dataclass(frozen=True)
class Tried:
    """One plan that was measured."""

    choice: Choice
    plan: QuantizationPlan
    score: PlanScore

    @property
    def worst_sqnr_db(self) -> float:
        return min(self.score.sqnr_db.values(), default=0.0)

    @property
    def in_boxes(self) -> float:
        """Lost share plus confidence shift; 0 without a decoder."""
        fidelity = self.score.fidelity
        return 0.0 if fidelity is None else fidelity.lost + abs(fidelity.confidence_shift)

    @property
    def within_noise(self) -> bool:
        """Nothing that could be measured is lost."""
        return self.in_boxes <= _MARGIN and self.worst_sqnr_db >= _CLEAN_DB

    @property
    def loss(self) -> str:
        fidelity = self.score.fidelity
        if fidelity is None:
            return f"{self.worst_sqnr_db:.1f} dB at the worst output"
        return f"{100 * fidelity.lost:.1f} % of the boxes are lost"

    def loss_beside(self, other: Tried) -> str:
        """The loss; where both lose the same boxes also the scores, which then tell them apart."""
        if self.loss != other.loss or self.score.fidelity is None:
            return self.loss
        return f"{self.loss} and scores shift by {self.score.fidelity.confidence_shift:+.3f}"

    def row(self) -> dict[str, object]:
        return {
            "calibrator": self.choice.ranges,
            "depthwise": "float" if self.choice.float_kinds else "int8",
            "pictures": self.score.fidelity.images if self.score.fidelity else "-",
            "lost boxes %": self._told("lost"),
            "confidence shift": self._told("shift"),
            "worst SQNR dB": self._told("sqnr"),
        }

    def change(self, option: str, before: Tried, kept: bool, remark: str) -> dict[str, object]:
        """One row on what an option changed."""
        return {
            "option": option,
            "lost boxes %": f"{before._told('lost')} -> {self._told('lost')}",
            "confidence shift": f"{before._told('shift')} -> {self._told('shift')}",
            "worst SQNR dB": f"{before._told('sqnr')} -> {self._told('sqnr')}",
            "kept": kept,
            "remark": remark,
        }

    def _told(self, what: str) -> object:
        fidelity = self.score.fidelity
        if what == "sqnr":
            return round(self.worst_sqnr_db, 1)
        if fidelity is None:
            return "-"
        return round(100 * fidelity.lost, 2) if what == "lost" else round(fidelity.confidence_shift, 4)


def best_of(tried: Sequence[Tried]) -> Tried:
    """Of those whose boxes are the best or within noise of it, the one with the least noise at its outputs."""
    least = min(t.in_boxes for t in tried)
    return max((t for t in tried if t.in_boxes <= least + _MARGIN), key=lambda t: t.worst_sqnr_db)


def measurably_better(after: Tried, before: Tried) -> bool:
    """Better in boxes or in decibel by more than noise, and in the other not worse by more than noise."""
    boxes, decibel = before.in_boxes - after.in_boxes, after.worst_sqnr_db - before.worst_sqnr_db
    return (boxes > _MARGIN and decibel > -_MARGIN_DB) or (decibel > _MARGIN_DB and boxes > -_MARGIN)
