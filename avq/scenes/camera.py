"""Pinhole camera on the ego vehicle, pointed along a gently curving road."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avq.scenes.labels import Points

MOUNT_HEIGHT_M = 1.4
NEAR_M = 0.9


@dataclass(frozen=True)
class Camera:
    """Road coordinates (x right, y up, z ahead; metres, ego at the origin) to pixels.

    Attributes:
        width_px, height_px: picture size.
        horizon_px: row of the horizon (moves a little as the vehicle pitches).
        focal_px: focal length.
        x_m: lateral position of the camera in its lane.
        curvature_per_m: of the road; a point at z lies curvature * z^2 / 2 to the right.
    """

    width_px: int
    height_px: int
    horizon_px: float
    focal_px: float
    x_m: float
    curvature_per_m: float

    def project(self, points_m: Points) -> Points:
        """(..., 3) metres to (..., 2) pixels.

        z is clamped to the near plane: exact for edges along the road, which is how everything here is built.
        """
        z = np.maximum(points_m[..., 2], NEAR_M)
        scale = self.focal_px / z
        out = np.empty((*points_m.shape[:-1], 2), np.float64)
        bend = 0.5 * self.curvature_per_m * z * z
        out[..., 0] = self.width_px / 2 + (points_m[..., 0] - self.x_m + bend) * scale
        out[..., 1] = self.horizon_px + (MOUNT_HEIGHT_M - points_m[..., 1]) * scale
        return out

    def foot(self, x_m: float, z_m: float) -> tuple[float, float, float]:
        """Pixel (u, v) of a point on the ground, and the pixels a metre takes there."""
        scale = self.focal_px / max(z_m, NEAR_M)
        bend = 0.5 * self.curvature_per_m * z_m * z_m
        u = self.width_px / 2 + (x_m - self.x_m + bend) * scale
        return u, self.horizon_px + MOUNT_HEIGHT_M * scale, scale

    def x_towards(self, x_m: float, z_m: float) -> float:
        """How far right of the camera's line of sight a point is, in metres."""
        return x_m - self.x_m + 0.5 * self.curvature_per_m * z_m * z_m
