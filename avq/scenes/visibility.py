"""Decide which objects are labelled, by an occlusion map of half the picture's size."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from avq.scenes.labels import Points
from avq.scenes.pen import ONE, SHIFT

MIN_VISIBLE_SHARE = 0.5
MIN_INSIDE_SHARE = 0.25
# Of the picture's height: a box less tall or less than half as wide is noise, not an object.
MIN_HEIGHT_SHARE = 1 / 45
_SCENERY = 255


@dataclass
class _Entry:
    owner: int
    class_id: int
    track_id: int
    box: tuple[float, float, float, float]
    area: int
    window: tuple[int, int, int, int]


@dataclass
class Visibility:
    """Painter's order in numbers: every silhouette overwrites what it hides."""

    width_px: int
    height_px: int
    entries: list[_Entry] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.owners = np.zeros((self.height_px // 2, self.width_px // 2), np.uint8)

    def _paint(self, outline_px: Points, owner: int) -> None:
        limit = 4.0 * self.width_px
        half = np.rint(np.clip(outline_px, -limit, limit) * (ONE / 2)).astype(np.int32)
        hull = cv2.convexHull(half.reshape(-1, 1, 2))
        cv2.fillConvexPoly(self.owners, hull, owner, cv2.LINE_8, SHIFT)

    def hide(self, outline_px: Points) -> None:
        """Scenery in front of what was painted before."""
        self._paint(outline_px, _SCENERY)

    def add(self, outline_px: Points, class_id: int, track_id: int) -> None:
        """One labelled object, drawn after everything behind it."""
        x0, y0 = outline_px.min(0)
        x1, y1 = outline_px.max(0)
        ax, ay = max(x0, 0.0), max(y0, 0.0)
        bx, by = min(x1, float(self.width_px)), min(y1, float(self.height_px))
        owner = min(len(self.entries) + 1, _SCENERY - 1)
        self._paint(outline_px, owner)
        if bx <= ax or by <= ay:
            return
        height = by - ay
        inside = (bx - ax) * height / ((x1 - x0) * (y1 - y0))
        least = MIN_HEIGHT_SHARE * self.height_px
        if height < least or bx - ax < least / 2 or inside < MIN_INSIDE_SHARE:
            return
        window = (int(ay / 2), int(by / 2) + 1, int(ax / 2), int(bx / 2) + 1)
        area = self._count(window, owner)
        self.entries.append(
            _Entry(owner, class_id, track_id, (float(ax), float(ay), float(bx), float(by)), area, window)
        )

    def _count(self, window: tuple[int, int, int, int], owner: int) -> int:
        y0, y1, x0, x1 = window
        return int(np.count_nonzero(self.owners[y0:y1, x0:x1] == owner))

    def labelled(self) -> list[_Entry]:
        """The objects of which enough is still seen."""
        return [
            e for e in self.entries if e.area and self._count(e.window, e.owner) >= MIN_VISIBLE_SHARE * e.area
        ]
