"""The pictures on which a bundle and the float model disagree most, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from avq.builder.pictures.dataset import Item, read_picture
from avq.measure.fidelity import FIRM_SCORE, matched_shifts
from avq.render import Html, draw_detections, picture_pair
from avq.types import Detections

#: Boxes below this score are not drawn.
SHOWN_SCORE = 0.3


def worst_pairs(
    items: Sequence[Item],
    expected: Sequence[Detections],
    found: Sequence[Detections],
    class_names: Sequence[str],
    *,
    named: str,
    count: int,
) -> list[Html]:
    """Up to ``count`` pictures, worst first: the float model's boxes left, those of ``named`` right."""
    ranked = sorted(range(len(found)), key=lambda i: -_disagreement(expected[i], found[i]))
    pairs = []
    for index in ranked[:count]:
        pixels, name = read_picture(items[index]), items[index].path.name
        left = draw_detections(pixels, expected[index], class_names, min_score=SHOWN_SCORE)
        right = draw_detections(pixels, found[index], class_names, min_score=SHOWN_SCORE)
        pairs.append(picture_pair(left, right, (f"{name}: float", f"{name}: {named}")))
    return pairs


def _disagreement(expected: Detections, found: Detections) -> float:
    """Firm boxes lost, then how far the scores of the others moved."""
    firm = expected.above(FIRM_SCORE)
    shifts = matched_shifts(firm, found)
    return len(firm) - len(shifts) + float(abs(shifts).sum())
