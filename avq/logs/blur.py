"""Make people and vehicles unrecognisable in the pictures of a log.

What was not detected is not blurred. Everything else that may show the road (videos, pictures that cannot be decoded
or have no boxes, attachments) is left out of the output instead of being passed on as it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from avq.recording import Record
from avq.recording.pictures import decode_image, is_image
from avq.recording.repaint import repaint
from avq.types import U8

_MARGIN = 0.1
_MARGIN_PX = 2

_MAY_SHOW = re.compile(
    r"image|video|picture|theora|compressed|depth|camera(?!info)|pointcloud", re.IGNORECASE
)

Box = Sequence[float]
#: The boxes to hide in one picture, with their labels; None: nothing is known about this picture.
FindBoxes = Callable[[Record, U8], "Sequence[tuple[str, Box]] | None"]


@dataclass
class Blur:
    """A record in, the record that may leave the car out, or None.

    Args:
        finders: what knows boxes; all that know a picture are used.
        classes: labels to hide.
    """

    finders: Sequence[FindBoxes]
    classes: frozenset[str]

    def __post_init__(self) -> None:
        self.pictures = 0
        self.boxes: Counter[str] = Counter()
        self.left_out: dict[str, Counter[str]] = {}

    def __call__(self, record: Record) -> Record | None:
        if is_image(record):
            return self._blurred(record)
        why = _may_show(record)
        if why:
            self._leave_out(record, why)
        return None if why else record

    def _blurred(self, record: Record) -> Record | None:
        try:
            pixels = decode_image(record).copy()
        except ValueError:
            self._leave_out(record, "a picture that cannot be decoded")
            return None
        found = [boxes for find in self.finders if (boxes := find(record, pixels)) is not None]
        if not found:
            self._leave_out(record, "a picture that the log has no boxes for")
            return None
        self.pictures += 1
        hide = [(label, box) for boxes in found for label, box in boxes if label in self.classes]
        for label, box in hide:
            hide_box(pixels, box)
            self.boxes[label] += 1
        return replace(record, data=repaint(record, pixels)) if hide else record

    def _leave_out(self, record: Record, why: str) -> None:
        self.left_out.setdefault(record.topic, Counter())[why] += 1

    def account(self) -> dict[str, Any]:
        """What was done, for the answer of the command."""
        return {
            "pictures": self.pictures,
            "boxes": dict(sorted(self.boxes.items())),
            "classes": sorted(self.classes),
            "left_out": {topic: dict(why) for topic, why in sorted(self.left_out.items())},
            "limits": [
                "what was not detected is not blurred: look at the pictures before you pass them on",
                "a box hides its object and a tenth around it; shadows and reflections stay",
                "attachments are left out; positions, times and other messages stay as they are",
            ],
        }


def _may_show(record: Record) -> str:
    """Why a message that is no picture avq can blur may still show the road; "" when it does not."""
    if not record.schema_name:
        return "no schema says what it holds"
    if _MAY_SHOW.search(record.schema_name) and "ImageAnnotations" not in record.schema_name:
        return f"{record.schema_name} may show the road and cannot be blurred"
    return ""


def hide_box(pixels: U8, box_xyxy_px: Box) -> None:
    """Leave at most 6 x 6 mean colours of the box and a margin around it, in place."""
    x0, y0, x1, y1 = (float(v) for v in box_xyxy_px)
    if not np.isfinite([x0, y0, x1, y1]).all():
        return
    dx, dy = (x1 - x0) * _MARGIN + _MARGIN_PX, (y1 - y0) * _MARGIN + _MARGIN_PX
    height, width = pixels.shape[:2]
    left, right = (int(np.clip(v, 0, width)) for v in (np.floor(x0 - dx), np.ceil(x1 + dx)))
    top, bottom = (int(np.clip(v, 0, height)) for v in (np.floor(y0 - dy), np.ceil(y1 + dy)))
    if right <= left or bottom <= top:
        return
    region = pixels[top:bottom, left:right]
    cells = (min(6, max(1, (right - left) // 8)), min(6, max(1, (bottom - top) // 8)))
    small = cv2.resize(region, cells, interpolation=cv2.INTER_AREA)
    pixels[top:bottom, left:right] = cv2.resize(small, (right - left, bottom - top))
