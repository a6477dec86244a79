"""Polygons in the picture, in shares of its width and height: they hold for every resolution of the camera."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from avq.types import F64, AnyArray

Anchor = Literal["bottom", "center"]
_EDGE = 1e-6


@dataclass(frozen=True)
class Zone:
    """Where a detection counts.

    Attributes:
        corners: (x, y) of at least three corners, 0..1 from the left and from the top.
        anchor: the point of a box that must lie inside: "bottom", the middle of its lower edge, where an object
            stands on the road, or "center".
    """

    corners: tuple[tuple[float, float], ...]
    anchor: Anchor = "bottom"

    def holds(self, boxes_xyxy_px: AnyArray, picture_size_px: tuple[int, int]) -> AnyArray:
        """(N,) bool: which boxes (N, 4) have their anchor inside; by the even-odd rule."""
        boxes = boxes_xyxy_px.astype(np.float64)
        x = (boxes[:, 0] + boxes[:, 2]) / 2 / picture_size_px[0]
        y = boxes[:, 3] if self.anchor == "bottom" else (boxes[:, 1] + boxes[:, 3]) / 2
        return _inside(_in_picture(x), _in_picture(y / picture_size_px[1]), np.array(self.corners))


def _in_picture(share: F64) -> F64:
    """A box that leaves the picture, or ends on its border, is still in a zone that ends there."""
    return np.clip(share, _EDGE, 1 - _EDGE)


def _inside(x: F64, y: F64, corners: F64) -> AnyArray:
    """Whether a ray to the right crosses the polygon an odd number of times."""
    x0, y0 = corners.T
    x1, y1 = np.roll(corners, -1, axis=0).T
    crosses = (y0 > y[:, None]) != (y1 > y[:, None])
    rise = np.where(y1 == y0, 1.0, y1 - y0)  # a level edge crosses no ray
    at = x0 + (y[:, None] - y0) * (x1 - x0) / rise
    odd: AnyArray = (crosses & (x[:, None] < at)).sum(axis=1) % 2 == 1
    return odd
