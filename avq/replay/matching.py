"""Two runs box by box: who found whom again, how far off, and what came or went. Order plays no part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from avq.compare import assign, by_frame, iou_matrix
from avq.errors import DataError
from avq.replay.frames import FrameKey
from avq.types import Detections

#: COCO's limits between small, medium and large, square pixels of the picture.
_SIZES = ((32.0**2, "small"), (96.0**2, "medium"), (float("inf"), "large"))
MIN_IOU = 0.5


@dataclass(frozen=True, slots=True)
class Match:
    """One object that both runs saw.

    Attributes:
        a, b: index of its box in the frames of the two runs.
        iou: overlap of the two boxes.
        centre_px, corner_px: how far the centre moved, and the corner coordinate that moved most.
        score_shift: score in b minus score in a.
        class_flip: the two runs call it different names.
    """

    a: int
    b: int
    iou: float
    centre_px: float
    corner_px: float
    score_shift: float
    class_flip: bool


@dataclass(frozen=True, slots=True)
class FramePair:
    """One frame in both runs; None where a run has not got it.

    Attributes:
        vanished, appeared: indices of boxes without a partner, in a and in b.
    """

    key: FrameKey
    a: Detections | None
    b: Detections | None
    matches: tuple[Match, ...] = ()
    vanished: tuple[int, ...] = ()
    appeared: tuple[int, ...] = ()

    @property
    def badness(self) -> float:
        """To rank frames by: scores of boxes that came or went, flips, then shifts of score and place."""
        if self.a is None or self.b is None:
            return 1e6
        gone = sum(_weight(self.a, i) for i in self.vanished) + sum(_weight(self.b, i) for i in self.appeared)
        moved = sum(_finite(abs(m.score_shift)) + (1.0 - m.iou) + m.class_flip for m in self.matches)
        return float(gone + moved)


def pair_frames(a: Sequence[Detections], b: Sequence[Detections]) -> tuple[FramePair, ...]:
    """All frames of either run by camera and sequence number, in the order of ``a``, then what only ``b`` has.

    Raises DataError when neither run has a frame, or one has a frame twice.
    """
    left, right = by_frame(a, "reference"), by_frame(b, "replayed")
    keys = [*left, *(key for key in right if key not in left)]
    if not keys:
        raise DataError(
            "there is nothing to compare", seen="no frames in either run", fix="give at least one"
        )
    return tuple(_pair(key, left.get(key), right.get(key)) for key in keys)


def size_of(seen: Detections, index: int) -> str:
    """ "small", "medium" or "large", as COCO parts them by area."""
    x0, y0, x1, y1 = seen.boxes_xyxy_px[index].astype(np.float64).tolist()
    area = max(0.0, x1 - x0) * max(0.0, y1 - y0)
    return next((name for limit, name in _SIZES if area < limit), "large")


def _pair(key: FrameKey, a: Detections | None, b: Detections | None) -> FramePair:
    if a is None or b is None:
        return FramePair(key, a, b)
    pairs = assign(a, b, MIN_IOU)
    iou = iou_matrix(a.boxes_xyxy_px, b.boxes_xyxy_px)
    matches = tuple(_match(a, i, b, j, float(iou[i, j])) for i, j in pairs)
    lone_a = sorted(set(range(len(a))) - {i for i, _ in pairs})
    lone_b = sorted(set(range(len(b))) - {j for _, j in pairs})
    return FramePair(key, a, b, matches, tuple(lone_a), tuple(lone_b))


def _match(a: Detections, i: int, b: Detections, j: int, iou: float) -> Match:
    first, second = a.boxes_xyxy_px[i].astype(np.float64), b.boxes_xyxy_px[j].astype(np.float64)
    moved = second - first
    centre = (moved[:2] + moved[2:]) / 2.0
    return Match(
        i,
        j,
        1.0 if not moved.any() else iou,
        float(np.hypot(*centre)),
        float(np.max(np.abs(moved))),
        float(b.scores[j]) - float(a.scores[i]),
        int(a.class_ids[i]) != int(b.class_ids[j]),
    )


def _weight(seen: Detections, index: int) -> float:
    return _finite(float(seen.scores[index]))


def _finite(value: float) -> float:
    """NaN is as bad as a score can be."""
    return value if np.isfinite(value) else 1.0
