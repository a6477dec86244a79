"""Evidence for a preprocessing: boxes that a network finds again when a picture changes a little.

Scores alone do not show the right preprocessing: with a wrong number range a network may score nonsense close to 1,
and find it again in the mirrored picture, too. What it has learned it also finds in a darker or larger picture,
with nearly the same score; nonsense comes and goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from avq.compare import assign, iou_matrix
from avq.types import F64, U8, AnyArray, Detections

Detect = Callable[[U8], Detections]

#: Lowest score that `picture_evidence` needs.
LOWEST_SCORE = 0.1
_OBJECT_SCORE = 0.3
_SAME_OBJECT_IOU = 0.5
_SAME_PLACE_IOU = 0.35
# Shifts of the boxes, as shares of width and height, that measure agreement by chance.
_ELSEWHERE = ((0.25, 0.0), (0.5, 0.25), (0.75, 0.5), (0.375, 0.75))
#: More boxes than this in a picture are no objects.
MOST_BOXES = 100
# One picture of nonsense must not outweigh the others.
_LOWEST_EVIDENCE = -2.0
# Two candidates give the same boxes when this share is found by both.
_SAME_BOXES = 0.95
_COMPARED_SCORE = 0.35
_PARTNER_SCORE = 0.25
_MOST_ENUMERATED = 12
_RANDOM_FLIPS = 8192


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one picture says for a preprocessing.

    Attributes:
        score: positive when boxes keep their place and score in all views of the picture, negative when most do not.
        objects: number of boxes that all views have.
        found: boxes of the picture itself.
    """

    score: float
    objects: int
    found: Detections


def picture_evidence(detect: Detect, pixels: U8) -> Evidence:
    """Detect in one picture and its mirrored, larger and darker view, and compare the boxes.

    Boxes with score >= 0.3 that overlap a better one (IoU > 0.35, of any class) are left out: one object, one box. A
    box with score s, whose lowest score over the views is w (0 where it is not found again with IoU >= 0.5 and the
    same class), adds w' - (s - w'). w' is w less the mean score that is found at four other places of the picture.

    Args:
        detect: runs the network on (H, W, 3) uint8 BGR pixels; boxes from a score of 0.1 on, best first.
        pixels: one picture.

    Returns:
        The evidence; its score is at least -2.
    """
    found = detect(pixels)
    boxes = _distinct(found.above(_OBJECT_SCORE))
    if len(boxes) == 0:
        return Evidence(0.0, 0, found)
    if len(boxes) > MOST_BOXES:
        return Evidence(_LOWEST_EVIDENCE, 0, found)
    weakest = boxes.scores.astype(np.float64)
    chance = _scores_elsewhere(boxes, found, (pixels.shape[1], pixels.shape[0]))
    for change in _CHANGES:
        view, to_view = change(pixels)
        weakest = np.minimum(weakest, _scores_again(boxes, detect(view), to_view))
        score = float(np.sum(2.0 * np.maximum(weakest - chance, 0.0) - boxes.scores))
        if score <= _LOWEST_EVIDENCE:  # other views can only lower it
            break
    weakest = np.maximum(weakest - chance, 0.0)
    return Evidence(max(score, _LOWEST_EVIDENCE), int(np.sum(weakest >= _OBJECT_SCORE)), found)


def _distinct(boxes: Detections) -> Detections:
    """One box per object, the best one first."""
    overlaps = iou_matrix(boxes.boxes_xyxy_px, boxes.boxes_xyxy_px) > _SAME_PLACE_IOU
    kept: list[int] = []
    for index in np.argsort(-boxes.scores, kind="stable").tolist():
        if not overlaps[index, kept].any():
            kept.append(index)
    return boxes[kept]


def _scores_again(boxes: Detections, view: Detections, to_view: F64) -> F64:
    """Best score in the view, per box, of boxes of the same class at its place; 0 without any."""
    corners = boxes.boxes_xyxy_px.reshape(-1, 2, 2) @ to_view[:, :2].T + to_view[:, 2]
    moved = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)
    return _scores_at(moved, boxes, view)


def _scores_elsewhere(boxes: Detections, found: Detections, size_px: tuple[int, int]) -> F64:
    """Mean over other places, per box, of the best score of boxes of its class there: agreement by chance."""
    places = boxes.boxes_xyxy_px
    centres = (places[:, :2] + places[:, 2:]) / 2
    steps = [(centres + np.multiply(share, size_px)) % size_px - centres for share in _ELSEWHERE]
    mean: F64 = np.mean([_scores_at(places + np.tile(step, (1, 2)), boxes, found) for step in steps], axis=0)
    return mean


def _scores_at(places: AnyArray, boxes: Detections, others: Detections) -> F64:
    same = iou_matrix(places.astype(np.float32), others.boxes_xyxy_px) >= _SAME_OBJECT_IOU
    same &= boxes.class_ids[:, None] == others.class_ids[None]
    best: F64 = np.where(same, others.scores[None].astype(np.float64), 0.0).max(axis=1, initial=0.0)
    return best


# Views: a changed picture, and the (2, 3) affine map from picture pixels to its pixels.

_UNMOVED = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def _mirrored(pixels: U8) -> tuple[U8, F64]:
    width = pixels.shape[1]
    return np.ascontiguousarray(pixels[:, ::-1]), np.array([[-1.0, 0.0, width], [0.0, 1.0, 0.0]])


def _larger(pixels: U8) -> tuple[U8, F64]:
    height, width = pixels.shape[:2]
    to_view = np.array([[1.15, 0.0, -0.07 * width], [0.0, 1.15, -0.07 * height]])
    return np.asarray(cv2.warpAffine(pixels, to_view, (width, height), borderValue=(114, 114, 114))), to_view


def _darker(pixels: U8) -> tuple[U8, F64]:
    """Three quarters of the contrast around 0.85 of the mean."""
    mean = float(pixels.mean())
    return cv2.convertScaleAbs(pixels, alpha=0.75, beta=0.10 * mean).astype(np.uint8), _UNMOVED


_CHANGES = (_mirrored, _larger, _darker)


# Comparisons between two candidates, picture by picture.


def same_boxes(a: Sequence[Detections], b: Sequence[Detections]) -> bool:
    """Whether 95 % of the boxes with score >= 0.35 have a partner in the other run; True without any box."""
    paired = total = 0
    for left, right in zip(a, b, strict=True):
        for one, other in ((left, right), (right, left)):
            firm = one.above(_COMPARED_SCORE)
            total += len(firm)
            pairs = assign(firm, other.above(_PARTNER_SCORE), _SAME_OBJECT_IOU)
            partners = other.above(_PARTNER_SCORE).class_ids
            paired += sum(int(firm.class_ids[i] == partners[j]) for i, j in pairs)
    return paired >= _SAME_BOXES * total


def chance_of(differences: F64) -> float:
    """Return the chance of a mean at least as high when each difference has a random sign.

    The paired randomisation test (Fisher 1935), one-sided; exact up to 12 pictures that differ.

    Args:
        differences: (N,) float64, one per picture.

    Returns:
        0.0 to 1.0; 1.0 when nothing differs.
    """
    values = differences[differences != 0.0]
    count = len(values)
    if count == 0:
        return 1.0
    if count <= _MOST_ENUMERATED:
        signs = 1.0 - 2.0 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
    else:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (_RANDOM_FLIPS, count))
        signs[0] = 1.0
    sums = signs @ values
    return float(np.mean(sums >= values.sum() - 1e-12))
