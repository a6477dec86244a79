"""Differences of two replays: boxes matched frame by frame, tolerances, and decisions of the loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np

from avq.compare import Difference, assign, by_frame, compare_detections, iou_matrix
from avq.compare import Tolerance as BoxTolerance
from avq.errors import DataError
from avq.replay.log import FrameKey
from avq.replay.result import Answer, ReplayResult
from avq.types import Detections

# Match the boxes of two runs: matched, missing, new. Order does not matter.

#: COCO's upper limits of small, medium and large, square pixels of the picture.
_SIZES = ((32.0**2, "small"), (96.0**2, "medium"), (float("inf"), "large"))
MIN_IOU = 0.5


@dataclass(frozen=True, slots=True)
class Match:
    """One object detected by both runs.

    Attributes:
        a: index of its box in the first run.
        b: index of its box in the second run.
        iou: overlap of the two boxes.
        centre_px: distance of the centres.
        corner_px: largest difference of a corner coordinate.
        score_shift: score in b minus score in a.
        class_flip: whether the classes differ.
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
    """One frame in both runs.

    Attributes:
        key: camera and sequence number.
        a: detections of the first run; None where it lacks the frame.
        b: detections of the second run; None where it lacks the frame.
        matches: boxes in both runs.
        vanished: indices in a of boxes without a partner.
        appeared: indices in b of boxes without a partner.
    """

    key: FrameKey
    a: Detections | None
    b: Detections | None
    matches: tuple[Match, ...] = ()
    vanished: tuple[int, ...] = ()
    appeared: tuple[int, ...] = ()

    @property
    def badness(self) -> float:
        """Amount of change, to rank frames: scores of lost and new boxes, class flips, shifts of score and IoU."""
        if self.a is None or self.b is None:
            return 1e6
        gone = sum(_weight(self.a, i) for i in self.vanished) + sum(_weight(self.b, i) for i in self.appeared)
        moved = sum(_finite(abs(m.score_shift)) + (1.0 - m.iou) + m.class_flip for m in self.matches)
        return float(gone + moved)


def pair_frames(a: Sequence[Detections], b: Sequence[Detections]) -> tuple[FramePair, ...]:
    """Match the frames and boxes of two runs, in the order of ``a``, then frames of ``b`` only.

    Raises:
        DataError: neither run has a frame, or one has a frame twice.
    """
    left, right = by_frame(a, "reference"), by_frame(b, "replayed")
    keys = [*left, *(key for key in right if key not in left)]
    if not keys:
        raise DataError(
            "there are no frames to compare", seen="no frames in either run", fix="give at least one frame"
        )
    return tuple(_pair(key, left.get(key), right.get(key)) for key in keys)


def size_of(detections: Detections, index: int) -> str:
    """Return the COCO size of a box: "small", "medium" or "large", by area."""
    x0, y0, x1, y1 = detections.boxes_xyxy_px[index].astype(np.float64).tolist()
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


def _weight(detections: Detections, index: int) -> float:
    return _finite(float(detections.scores[index]))


def _finite(value: float) -> float:
    """Return the value; 1, the largest score, for NaN and infinity."""
    return value if np.isfinite(value) else 1.0


# Tolerances of the three tiers.
Tier = Literal["exact", "toleranced", "metric"]
#: Learned spreads are doubled: a few runs do not show the largest one.
_MARGIN = 2.0
#: Lower bounds: another instruction set rounds differently even where the runs on one machine agree.
_FLOOR_PX, _FLOOR_SCORE = 0.5, 0.01


class Tolerances(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of the two tolerant tiers.

    Attributes:
        box_px: tier "toleranced": largest difference of a corner coordinate, picture pixels.
        score: tier "toleranced": largest difference of a score.
        max_lost: tier "metric": largest share of lost boxes among those with score >= 0.5.
        max_appeared: tier "metric": the same for new boxes.
        max_confidence_shift: tier "metric": largest shift of the mean score of recovered boxes.
        runs: unchanged runs from which ``box_px`` and ``score`` were learned; 0 for defaults.
        spread_px: largest corner difference among those runs.
        spread_score: largest score difference among those runs.
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
        """Whether unchanged runs gave the same bits."""
        return self.spread_px == 0.0 and self.spread_score == 0.0


def learn_tolerances(runs: Sequence[Sequence[Detections]]) -> Tolerances:
    """Learn limits from unchanged runs of one log: twice their spread, with a lower bound for instruction sets."""
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
    """Return the strictest tier that applies to two replays, and the reason."""
    if reference.bundle_digest != result.bundle_digest:
        limits = f"{allowed.box_px:g} px or {allowed.score:g} of score"
        return (
            "metric",
            f"another bundle: changes above {limits} are listed, losses are measured per class and size",
        )
    if reference.machine != result.machine:
        return "toleranced", f"the same bundle on another machine: {reference.machine}; here {result.machine}"
    if not allowed.repeatable:
        return "toleranced", f"this engine is not deterministic: {allowed.runs} runs differed"
    return "exact", "the same bundle on the same kind of machine: every bit must agree"


_DECIDED = ("t_capture_ns", "age_ns", "late", "mode", "dropped_since_last")


def box_differences(pairs: Sequence[FramePair], tier: Tier, allowed: Tolerances) -> list[Difference]:
    """Return differences of frames, boxes, scores and classes; in the exact tier also of the order of boxes."""
    limit = BoxTolerance() if tier == "exact" else BoxTolerance(allowed.box_px, allowed.score)
    left = [pair.a for pair in pairs if pair.a is not None]
    right = [pair.b for pair in pairs if pair.b is not None]
    differences = list(compare_detections(left, right, limit).differences)
    if tier == "exact":
        named = {(d.camera, d.frame) for d in differences}
        differences += [d for pair in pairs if pair.key not in named for d in _order(pair)]
    return differences


def _order(pair: FramePair) -> Iterator[Difference]:
    """Yield a difference where the same boxes are in another order: the digest differs."""
    moved = [(m.a, m.b) for m in pair.matches if m.a != m.b]
    if moved:
        camera, frame = pair.key
        a, b = moved[0]
        yield Difference(frame, camera, "order", a, b, "the same boxes in another order")


def decision_differences(reference: ReplayResult, result: ReplayResult) -> list[Difference]:
    """Return differences of decisions: lateness, modes, drops, events, and the order of frames."""
    before, after = ({answer.key: answer for answer in run.answers} for run in (reference, result))
    differences: list[Difference] = []
    for key in (key for key in before if key in after):
        differences += _decided(key, before[key], after[key])
    differences += _publication_order(reference, result)
    differences += _events(reference.events, result.events, default=_first(result))
    if not differences and reference.account != result.account:
        camera, frame = _first(result)
        differences.append(
            Difference(
                frame,
                camera,
                "dropped",
                reference.account.dropped,
                result.account.dropped,
                "over the whole log",
            )
        )
    return differences


def _decided(key: FrameKey, before: Answer, after: Answer) -> Iterator[Difference]:
    for field in _DECIDED:
        holder_a, holder_b = (
            answer.detections if field == "t_capture_ns" else answer.published for answer in (before, after)
        )
        a, b = getattr(holder_a, field), getattr(holder_b, field)
        if a != b:
            yield Difference(key[1], key[0], field, a, b)


def _publication_order(reference: ReplayResult, result: ReplayResult) -> list[Difference]:
    in_both = {a.key for a in reference.answers} & {a.key for a in result.answers}
    before, after = ([a.key for a in run.answers if a.key in in_both] for run in (reference, result))
    for a, b in zip(before, after, strict=True):
        if a != b:
            return [
                Difference(b[1], b[0], "order", list(a), list(b), "frames were published in another order")
            ]
    return []


def _events(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], default: FrameKey
) -> list[Difference]:
    for index in range(max(len(before), len(after))):
        a = dict(before[index]) if index < len(before) else None
        b = dict(after[index]) if index < len(after) else None
        if a != b:
            event: Mapping[str, Any] = b or a or {}
            camera, frame = str(event.get("camera", default[0])), int(event.get("seq", default[1]))
            return [
                Difference(frame, camera, "event", a, b, f"event {index} of {len(before)} and {len(after)}")
            ]
    return []


def new_events(reference: ReplayResult, result: ReplayResult) -> list[Difference]:
    """Return alerts and mode changes of the result that the reference does not have."""
    left = Counter(_kind(event) for event in reference.events)
    differences = []
    for event in result.events:
        if left[_kind(event)] > 0:
            left[_kind(event)] -= 1
            continue
        camera, frame = str(event.get("camera", "")), int(event.get("seq", 0))
        differences.append(Difference(frame, camera, "event", None, dict(event), "only with this bundle"))
    return differences


def _kind(event: Mapping[str, Any]) -> tuple[str, str]:
    return str(event.get("kind")), str(event.get("mode"))


def _first(result: ReplayResult) -> FrameKey:
    return result.answers[0].key if result.answers else ("", 0)
