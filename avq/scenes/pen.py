"""Draw on a canvas: lighting and haze by distance are applied to every colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from avq.scenes.labels import Bgr, Image, Points
from avq.scenes.weather import Light

# Fixed-point bits for OpenCV: sub-pixel corners keep a drive smooth.
SHIFT = 4
ONE = 1 << SHIFT
FAR_PX = 20_000

Fixed = NDArray[np.int32]


class Pen:
    """Draws filled shapes in pixels on one HxWx3 canvas; ``at`` sets the distance for the haze."""

    def __init__(self, canvas: Image, light: Light) -> None:
        self.canvas = canvas
        self.light = light
        self.height_px, self.width_px = canvas.shape[:2]
        self.at(0.0)

    def at(self, z_m: float) -> None:
        """Sets the distance in metres: from here on colours carry that much haze."""
        clear = math.exp(-max(z_m, 0.0) / self.light.haze_m)
        gain, haze = self.light.gain_bgr, self.light.haze_bgr
        self._clear = clear
        self._gain = (gain[0] * clear, gain[1] * clear, gain[2] * clear)
        self._haze = (haze[0] * (1 - clear), haze[1] * (1 - clear), haze[2] * (1 - clear))

    def lit(self, bgr: Bgr) -> Bgr:
        """A surface colour after light and haze."""
        gain, haze = self._gain, self._haze
        return (bgr[0] * gain[0] + haze[0], bgr[1] * gain[1] + haze[1], bgr[2] * gain[2] + haze[2])

    def glowing(self, bgr: Bgr) -> Bgr:
        """The colour of something that shines itself: haze only."""
        a, haze = 0.3 + 0.7 * self._clear, self.light.haze_bgr
        return (
            bgr[0] * a + haze[0] * (1 - a),
            bgr[1] * a + haze[1] * (1 - a),
            bgr[2] * a + haze[2] * (1 - a),
        )

    def cut(self, points: Fixed, bgr: Bgr, *, glow: bool = False) -> None:
        """One filled convex polygon whose (N, 2) points are already ``fixed``."""
        colour = self.glowing(bgr) if glow else self.lit(bgr)
        cv2.fillConvexPoly(self.canvas, points, colour, cv2.LINE_AA, SHIFT)

    def poly(self, points_px: Points, bgr: Bgr, *, glow: bool = False, smooth: bool = True) -> None:
        """One filled convex polygon, points (N, 2)."""
        colour = self.glowing(bgr) if glow else self.lit(bgr)
        cv2.fillConvexPoly(
            self.canvas, fixed(points_px), colour, cv2.LINE_AA if smooth else cv2.LINE_8, SHIFT
        )

    def polys(self, many_px: Points, bgr: Bgr, *, glow: bool = False) -> None:
        """Many filled polygons of one colour, points (M, N, 2), with plain edges."""
        if len(many_px):
            colour = self.glowing(bgr) if glow else self.lit(bgr)
            cv2.fillPoly(self.canvas, list(fixed(many_px)), colour, cv2.LINE_8, SHIFT)

    def line(self, points_px: Points, bgr: Bgr, thickness_px: float, *, closed: bool = False) -> None:
        """A polyline through (N, 2) points."""
        width = max(1, round(thickness_px))
        cv2.polylines(self.canvas, [fixed(points_px)], closed, self.lit(bgr), width, cv2.LINE_AA, SHIFT)

    def limb(self, a: Sequence[float], b: Sequence[float], width_px: float, bgr: Bgr) -> None:
        """A thick straight stroke with sub-pixel width, as a quad."""
        dx, dy = b[0] - a[0], b[1] - a[1]
        half = 0.5 * width_px / max(math.hypot(dx, dy), 1e-6)
        nx, ny = -dy * half, dx * half
        quad = [
            (a[0] + nx, a[1] + ny),
            (b[0] + nx, b[1] + ny),
            (b[0] - nx, b[1] - ny),
            (a[0] - nx, a[1] - ny),
        ]
        cv2.fillConvexPoly(self.canvas, fixed(np.array(quad)), self.lit(bgr), cv2.LINE_AA, SHIFT)

    def disc(self, x: float, y: float, radius_px: float, bgr: Bgr, *, glow: bool = False) -> None:
        if abs(x) < FAR_PX and abs(y) < FAR_PX:
            centre = (round(x * ONE), round(y * ONE))
            colour = self.glowing(bgr) if glow else self.lit(bgr)
            cv2.circle(self.canvas, centre, max(round(radius_px * ONE), 1), colour, -1, cv2.LINE_AA, SHIFT)

    def halo(self, x: float, y: float, radius_px: float, bgr: Bgr) -> None:
        """Adds a soft round glow to what is already there."""
        size = 2 * int(radius_px) + 1
        x0, y0 = round(x) - size // 2, round(y) - size // 2
        ax, ay = max(x0, 0), max(y0, 0)
        bx, by = min(x0 + size, self.width_px), min(y0 + size, self.height_px)
        if size < 5 or ax >= bx or ay >= by:
            return
        sprite = halo_sprite(size)[ay - y0 : by - y0, ax - x0 : bx - x0]
        region = self.canvas[ay:by, ax:bx]
        tint = np.array([bgr[0], bgr[1], bgr[2], 0.0])
        tinted = cv2.multiply(sprite, tint, scale=1 / 255)
        cv2.add(region, tinted, dst=region)


@lru_cache(maxsize=256)
def halo_sprite(size_px: int) -> Image:
    """A round falloff, size x size x 3 uint8; few sizes occur, so it is kept for reuse."""
    axis = np.linspace(-1, 1, size_px)
    distance = np.sqrt(axis[:, None] ** 2 + axis[None, :] ** 2)
    value = np.clip(1 - distance, 0, 1) ** 2.2 * 255
    return np.repeat(value.astype(np.uint8)[..., None], 3, 2)


def fixed(points_px: Points) -> Fixed:
    """Pixels to OpenCV's fixed point. The near plane bounds them, so nothing overflows."""
    return (points_px * ONE).astype(np.int32)
