"""Draw the ground: grass, pavements, kerbs, asphalt and markings, from far to near."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from avq.scenes.camera import NEAR_M, Camera
from avq.scenes.labels import Bgr, Points
from avq.scenes.pen import Pen, fixed
from avq.scenes.weather import Light

# The cross-section of one drive's road: lanes, parking strips, pavements; metres from the ego lane's
# middle.

LANE_M = 3.5


@dataclass(frozen=True)
class RoadLayout:
    """x positions, metres, right positive. Pavements lie between ``*_edge_m`` and ``*_wall_m``."""

    same_lanes_m: tuple[float, ...]
    oncoming_lanes_m: tuple[float, ...]
    left_edge_m: float
    right_edge_m: float
    parking: bool

    @property
    def left_wall_m(self) -> float:
        return self.left_edge_m - 3.2

    @property
    def right_wall_m(self) -> float:
        return self.right_edge_m + 3.2


def layout_for(rng: np.random.Generator) -> RoadLayout:
    """Two to four lanes, with or without parked cars at the kerb."""
    right_lanes = 1 + int(rng.random() < 0.3)
    left_lanes = 1 + int(rng.random() < 0.35)
    parking = bool(rng.random() < 0.55)
    strip = 3.6 if parking else 1.7
    same = tuple(LANE_M * i for i in range(right_lanes))
    oncoming = tuple(-LANE_M * (i + 1) for i in range(left_lanes))
    right = same[-1] + LANE_M / 2 + strip
    left = oncoming[-1] - LANE_M / 2 - (2.3 if parking else 0.4)
    return RoadLayout(same, oncoming, left, right, parking)


ASPHALT: Bgr = (98, 96, 96)
PAVEMENT: Bgr = (152, 156, 160)
KERB: Bgr = (186, 188, 190)
GRASS: Bgr = (62, 118, 88)
PAINT: Bgr = (226, 230, 230)
FAR_M = 260.0
# Depths of the strips: dense near the camera, where a metre is many pixels.
_DEPTHS = np.concatenate([np.linspace(NEAR_M, 12, 7), np.geomspace(15, FAR_M, 12)])
_DASH_M, _PERIOD_M = 3.0, 9.0


def _edge(camera: Camera, x_m: float, y_m: float = 0.0) -> Points:
    points = np.empty((len(_DEPTHS), 3))
    points[:, 0], points[:, 1], points[:, 2] = x_m, y_m, _DEPTHS
    return camera.project(points)


def _strip(pen: Pen, left: Points, right: Points, bgr: Bgr) -> None:
    outline = np.concatenate([left, right[::-1]])
    cv2.fillPoly(pen.canvas, [fixed(outline)], pen.lit(bgr), cv2.LINE_8, 4)


def draw_road(pen: Pen, camera: Camera, layout: RoadLayout, travelled_m: float) -> None:
    """Everything flat. ``travelled_m`` moves the dashes."""
    horizon = int(camera.horizon_px)
    pen.at(25.0)
    pen.canvas[horizon:] = np.array(pen.lit(GRASS))
    left_wall = _edge(camera, layout.left_wall_m - 1.5)
    left, right = _edge(camera, layout.left_edge_m), _edge(camera, layout.right_edge_m)
    right_wall = _edge(camera, layout.right_wall_m + 1.5)
    pen.at(14.0)
    _strip(pen, left_wall, right_wall, PAVEMENT)
    _strip(pen, _edge(camera, layout.left_edge_m - 0.18), _edge(camera, layout.right_edge_m + 0.18), KERB)
    _strip(pen, left, right, ASPHALT)
    _shade_ground(pen.canvas, horizon, pen.light)
    _draw_slabs(pen, camera, layout, travelled_m)
    _draw_markings(pen, camera, layout, travelled_m)


def _draw_slabs(pen: Pen, camera: Camera, layout: RoadLayout, travelled_m: float) -> None:
    """Joints across the pavements, so that they move."""
    z = 4.0 - travelled_m % 4.0 + np.arange(10) * 4.0
    pen.at(12.0)
    for x0, x1 in (
        (layout.left_wall_m, layout.left_edge_m - 0.2),
        (layout.right_edge_m + 0.2, layout.right_wall_m),
    ):
        quads = np.zeros((len(z), 4, 3))
        quads[:, :, 0] = (x0, x1, x1, x0)
        quads[:, :2, 2], quads[:, 2:, 2] = z[:, None], z[:, None] + 0.10
        pen.polys(camera.project(quads), (130, 134, 138))


def _draw_markings(pen: Pen, camera: Camera, layout: RoadLayout, travelled_m: float) -> None:
    pen.at(14.0)
    for x in (layout.oncoming_lanes_m[-1] - LANE_M / 2, layout.same_lanes_m[-1] + LANE_M / 2):
        _strip(pen, _edge(camera, x - 0.07), _edge(camera, x + 0.07), PAINT)
    centre = -LANE_M / 2
    if len(layout.oncoming_lanes_m) > 1:
        for x in (centre - 0.14, centre + 0.14):
            _strip(pen, _edge(camera, x - 0.06), _edge(camera, x + 0.06), (70, 190, 225))
        dashed = [centre - LANE_M]
    else:
        dashed = [centre]
    dashed += [x + LANE_M / 2 for x in layout.same_lanes_m[:-1]]
    start = -(travelled_m % _PERIOD_M)
    z = start + np.arange(0, 13) * _PERIOD_M
    z = z[z + _DASH_M > NEAR_M]
    for x in dashed:
        quads = np.zeros((len(z), 4, 3))
        quads[:, :, 0] = (x - 0.08, x + 0.08, x + 0.08, x - 0.08)
        quads[:, :2, 2], quads[:, 2:, 2] = z[:, None], z[:, None] + _DASH_M
        pen.polys(camera.project(quads), PAINT)


def draw_crossing(pen: Pen, camera: Camera, layout: RoadLayout, z_m: float) -> None:
    """A zebra crossing over the whole road, its near edge at z."""
    x = np.arange(layout.left_edge_m + 0.5, layout.right_edge_m - 0.7, 1.0)
    quads = np.zeros((len(x), 4, 3))
    quads[:, :, 0] = x[:, None] + np.array([0, 0.5, 0.5, 0])
    quads[:, :2, 2], quads[:, 2:, 2] = max(z_m, NEAR_M), max(z_m + 3.2, NEAR_M)
    pen.at(14.0)
    pen.polys(camera.project(quads), PAINT)


@lru_cache(maxsize=8)
def _ground_shading(rows: int, columns: int, weather: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A multiplier for the ground (128 means 1): brighter by haze far away, by the ego's headlights at night."""
    y = np.linspace(0, 1, rows)[:, None]
    x = np.linspace(-1, 1, columns)[None, :]
    if weather == "night":
        reach = np.exp(-(((y - 0.34) / 0.34) ** 2))
        beam = np.exp(-((x / (0.16 + 0.75 * y)) ** 2) * 1.4)
        gain = 0.85 + 2.1 * reach * beam
    else:
        gain = 1.0 - 0.10 * y + 0.05 * np.cos(x * 2.0)
    rng = np.random.default_rng(5)
    grain = cv2.resize(
        rng.normal(0, 0.030, (rows // 2 + 1, columns // 3 + 1)).astype(np.float32), (columns, rows)
    )
    value = np.clip((gain + grain * (0.4 + y)) * 85, 0, 255).astype(np.uint8)
    return np.repeat(value[..., None], 3, 2)


def _shade_ground(
    canvas: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], horizon: int, light: Light
) -> None:
    ground = canvas[horizon:]
    shading = _ground_shading(canvas.shape[0] - canvas.shape[0] // 3, canvas.shape[1], light.weather)[
        : ground.shape[0]
    ]
    cv2.multiply(ground, shading, dst=ground, scale=1 / 85)
