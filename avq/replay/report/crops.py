"""Both sets of boxes on one frame, side by side, cut to the part that changed."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from avq.render import Html, draw_detections, picture_pair
from avq.replay.matching import FramePair
from avq.types import U8, Detections

#: A cut keeps at least this share of each side, so that one sees where it is.
_LEAST_SHARE = 0.45
_MARGIN = 0.35
#: Small cuts are enlarged: a box of ten pixels must be seen on a phone.
_SHOWN_PX = 620
_MOVED_PX = 2.0
_RESCORED = 0.05


def side_by_side(pair: FramePair, pixels: U8, labels: Sequence[str]) -> Html:
    """Reference left, replay right, with a caption of what changed."""
    a, b = pair.a, pair.b
    assert a is not None and b is not None
    x0, y0, x1, y1 = _window(pair, a, b, pixels)
    scale = max(1.0, _SHOWN_PX / (x1 - x0))
    sides = []
    for seen in (a, b):
        cut = np.ascontiguousarray(pixels[y0:y1, x0:x1])
        if scale > 1.0:
            cut = np.asarray(
                cv2.resize(cut, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC), np.uint8
            )
        sides.append(draw_detections(cut, _moved(seen, x0, y0, scale), labels))
    camera, frame = pair.key
    return picture_pair(
        sides[0], sides[1], (f"{camera} {frame}: reference, {len(a)} boxes", _caption(pair, b))
    )


def _caption(pair: FramePair, b: Detections) -> str:
    flips = sum(match.class_flip for match in pair.matches)
    told = [
        f"{count} {what}"
        for count, what in (
            (len(pair.vanished), "vanished"),
            (len(pair.appeared), "appeared"),
            (flips, "class flips"),
        )
        if count
    ]
    return f"this replay, {len(b)} boxes" + (f": {', '.join(told)}" if told else ": scores or places moved")


def _window(pair: FramePair, a: Detections, b: Detections, pixels: U8) -> tuple[int, int, int, int]:
    """The part of the picture that holds every box that changed, with a margin."""
    height, width = pixels.shape[:2]
    boxes = [a.boxes_xyxy_px[i] for i in pair.vanished] + [b.boxes_xyxy_px[j] for j in pair.appeared]
    for match in pair.matches:
        if match.class_flip or match.corner_px > _MOVED_PX or abs(match.score_shift) > _RESCORED:
            boxes += [a.boxes_xyxy_px[match.a], b.boxes_xyxy_px[match.b]]
    finite = [box for box in boxes if np.all(np.isfinite(box))]
    if not finite:
        return 0, 0, width, height
    corners = np.array(finite, np.float64)
    low, high = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)
    whole = np.array([width, height], np.float64)
    reach = np.maximum((high - low) * (1.0 + _MARGIN), whole * _LEAST_SHARE)
    reach = np.minimum(np.maximum(reach, whole * (reach / whole).max()), whole)  # keep the picture's shape
    start = np.clip((low + high - reach) / 2.0, 0.0, whole - reach)
    x0, y0 = (int(v) for v in np.floor(start))
    x1, y1 = (int(v) for v in np.minimum(np.ceil(start + reach), whole))
    return x0, y0, x1, y1


def _moved(seen: Detections, x0: int, y0: int, scale: float) -> Detections:
    """The boxes in the cut's own pixels; those outside are left out."""
    boxes = (seen.boxes_xyxy_px - np.array([x0, y0, x0, y0], np.float32)) * np.float32(scale)
    keep = (boxes[:, 2] > 0) & (boxes[:, 3] > 0)
    return Detections(boxes[keep], seen.scores[keep], seen.class_ids[keep], seen.camera, seen.seq)
