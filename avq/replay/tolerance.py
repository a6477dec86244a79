"""How far two replays may differ: exactly not, by what was learned, or by what it costs in boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from avq.replay.matching import pair_frames
from avq.replay.result import ReplayResult
from avq.types import Detections

Tier = Literal["exact", "toleranced", "metric"]
#: Learned spreads are doubled: N runs do not show the widest one.
_MARGIN = 2.0
#: Another instruction set rounds differently even where N runs on one machine did not.
_FLOOR_PX, _FLOOR_SCORE = 0.5, 0.01


class Tolerances(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of the two tolerant tiers.

    Attributes:
        box_px, score: toleranced: largest corner distance and score difference of one box.
        max_lost, max_appeared: metric: tolerated share of boxes with score >= 0.5 that went or came.
        max_confidence_shift: metric: of the mean score of boxes found again.
        runs: no-change runs that ``box_px`` and ``score`` were learned from; 0 when they are defaults.
        spread_px, spread_score: what those runs differed by.
    """

    box_px: float = _FLOOR_PX
    score: float = _FLOOR_SCORE
    max_lost: float = 0.01
    max_appeared: float = 0.01
    max_confidence_shift: float = 0.02
    runs: int = 0
    spread_px: float = 0.0
    spread_score: float = 0.0

    @property
    def repeatable(self) -> bool:
        """No-change runs gave the same bits."""
        return self.spread_px == 0.0 and self.spread_score == 0.0


def learned(runs: Sequence[Sequence[Detections]]) -> Tolerances:
    """From no-change runs of one log: twice their spread, at least what instruction sets differ by."""
    spread_px = spread_score = 0.0
    for other in runs[1:]:
        for pair in pair_frames(runs[0], other):
            for match in pair.matches:
                spread_px = max(spread_px, match.corner_px)
                spread_score = max(spread_score, abs(match.score_shift))
    return Tolerances(
        box_px=max(_FLOOR_PX, _MARGIN * spread_px),
        score=max(_FLOOR_SCORE, _MARGIN * spread_score),
        runs=len(runs),
        spread_px=spread_px,
        spread_score=spread_score,
    )


def tier_for(reference: ReplayResult, result: ReplayResult, allowed: Tolerances) -> tuple[Tier, str]:
    """Which comparison the two allow, and why."""
    if reference.bundle_digest != result.bundle_digest:
        limits = f"{allowed.box_px:g} px or {allowed.score:g} of score"
        return (
            "metric",
            f"another bundle: changes beyond {limits} are listed, losses are measured per class and size",
        )
    if reference.machine != result.machine:
        return "toleranced", f"the same bundle on another machine: {reference.machine}; here {result.machine}"
    if not allowed.repeatable:
        return "toleranced", f"this engine does not repeat its bits: {allowed.runs} runs differed"
    return "exact", "the same bundle on the same kind of machine: every bit must agree"
