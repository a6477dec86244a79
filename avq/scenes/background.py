"""Draw the background: buildings, trees and lamp posts, which are not labelled but occlude objects; the sky."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from avq.scenes.camera import NEAR_M, Camera
from avq.scenes.labels import Bgr, Image, Points
from avq.scenes.pen import Pen
from avq.scenes.weather import Light

WALLS: tuple[Bgr, ...] = (
    (120, 140, 168), (150, 160, 172), (96, 112, 150), (168, 176, 180), (110, 118, 126), (130, 150, 160),
    (84, 96, 140), (176, 170, 158),
)  # fmt: skip
LEAVES: tuple[Bgr, ...] = ((52, 110, 74), (44, 92, 58), (58, 124, 96), (60, 130, 130))
TRUNK: Bgr = (52, 66, 84)


@dataclass(frozen=True)
class Building:
    """A block beside the road: x of its street side, depth along the road, floors."""

    x_m: float
    side: float
    length_m: float
    floors: int
    wall: Bgr
    lit_seed: int


@dataclass(frozen=True)
class Tree:
    x_m: float
    height_m: float
    leaves: Bgr
    lean: float


@dataclass(frozen=True)
class Lamp:
    x_m: float
    side: float


def draw_building(pen: Pen, camera: Camera, building: Building, z_m: float) -> Points | None:
    """Street side with windows, then the end facing the camera. Returns the outline (M, 2), None if behind."""
    z0, z1 = max(z_m, NEAR_M), z_m + building.length_m
    if z1 <= NEAR_M:
        return None
    x, side = building.x_m, building.side
    top = 3.2 * building.floors + 0.8
    outer = x + side * 12.0
    corners = np.array([
        [x, 0, z0], [x, top, z0], [x, top, z1], [x, 0, z1],
        [x, 0, z0], [outer, 0, z0], [outer, top, z0], [x, top, z0],
    ], float)  # fmt: skip
    px = camera.project(corners)
    pen.at(z0 + 4)
    wall = building.wall
    pen.poly(px[:4], (wall[0] * 0.82, wall[1] * 0.82, wall[2] * 0.82), smooth=False)
    if z_m > NEAR_M:
        pen.poly(px[4:], wall, smooth=False)
    _draw_windows(pen, camera, building, z0, z1)
    shop = np.array([[x, 0, z0], [x, 2.9, z0], [x, 2.9, z1], [x, 0, z1]], float)
    pen.poly(camera.project(shop), (wall[0] * 0.5, wall[1] * 0.5, wall[2] * 0.5), smooth=False)
    return px


def _draw_windows(pen: Pen, camera: Camera, building: Building, z0: float, z1: float) -> None:
    columns = max(int(building.length_m / 2.6), 1)
    if z0 > 80:
        return
    rng = np.random.default_rng(building.lit_seed)
    floors = np.arange(1, building.floors)
    near = z1 - building.length_m + 0.7 + np.arange(columns) * (building.length_m / columns)
    quads = np.empty((len(floors), columns, 4, 3))
    quads[..., 0] = building.x_m - building.side * 0.02
    quads[..., :, 1] = (floors[:, None] * 3.2 + 0.6)[..., None] + np.array([0, 1.7, 1.7, 0])
    quads[..., :, 2] = near[None, :, None] + np.array([0, 0, 1.3, 1.3])
    flat = quads.reshape(-1, 4, 3)
    lit = rng.random(len(flat)) < (0.35 if pen.light.lamps_on else 0.0)
    seen = flat[:, 2, 2] > NEAR_M
    px = camera.project(flat)
    pen.polys(px[seen & ~lit], (88, 78, 66))
    pen.polys(px[seen & lit], (96, 170, 214), glow=True)


def draw_tree(pen: Pen, camera: Camera, tree: Tree, z_m: float) -> Points | None:
    if z_m < 2.5:
        return None
    u, v, k = camera.foot(tree.x_m, z_m)
    h = tree.height_m * k
    if u < -h or u > pen.width_px + h:
        return None
    pen.at(z_m)
    trunk = 0.28 * k
    pen.limb((u, v), (u + tree.lean * k, v - h * 0.5), max(trunk, 1), TRUNK)
    crown_u, crown_v, r = u + tree.lean * k, v - h * 0.66, h * 0.30
    b, g, c = tree.leaves
    for dx, dy, size, tone in (
        (0.0, 0.1, 1.0, 0.72),
        (-0.55, 0.15, 0.66, 0.82),
        (0.55, 0.2, 0.62, 0.85),
        (0.05, -0.4, 0.72, 1.0),
        (-0.25, -0.2, 0.5, 1.12),
    ):
        pen.disc(crown_u + dx * r, crown_v + dy * r, size * r, (b * tone, g * tone, c * tone))
    angle = np.arange(8) * (math.pi / 4)
    return np.stack([crown_u + np.cos(angle) * r, crown_v + np.sin(angle) * r], 1)


def draw_lamp(pen: Pen, camera: Camera, lamp: Lamp, z_m: float) -> None:
    if z_m < 3.0:
        return
    u, v, k = camera.foot(lamp.x_m, z_m)
    pen.at(z_m)
    top = v - 6.4 * k
    reach = u - lamp.side * 1.6 * k
    pen.limb((u, v), (u, top), max(0.13 * k, 1), (78, 82, 84))
    pen.limb((u, top), (reach, top - 0.25 * k), max(0.09 * k, 1), (78, 82, 84))
    if pen.light.lamps_on:
        y = top - 0.15 * k
        pen.disc(reach, y, max(0.16 * k, 1), (190, 235, 255), glow=True)
        pen.halo(reach, y, min(2.2 * k, pen.width_px / 6), (70, 120, 150))


# The sky with clouds, and the far skyline: one wide picture per drive, shifted sideways as the road
# bends.

MARGIN_PX = 96


def make_sky(width_px: int, height_px: int, light: Light, rng: np.random.Generator) -> Image:
    """(height/2 + 24) x (width + 2 margin) x 3: its last row is where the ground begins."""
    rows, columns = height_px // 2 + 24, width_px + 2 * MARGIN_PX
    blend = np.linspace(0, 1, rows)[:, None, None] ** 1.4
    fade = np.array(light.sky_top_bgr) * (1 - blend) + np.array(light.sky_low_bgr) * blend
    sky = np.asarray(np.repeat(fade, columns, 1), np.float32)
    clouds = _clouds(rows, columns, rng)[..., None]
    if light.weather == "night":
        _add_stars(sky, rng)
        sky += clouds * np.array([16, 12, 11], np.float32)
    else:
        white = (
            np.array((250, 250, 250), np.float32)
            if light.weather != "rain"
            else np.array(light.haze_bgr, np.float32) * 0.82
        )
        sky += (white - sky) * clouds * 0.75
    _add_skyline(sky, light, rng)
    return np.clip(sky, 0, 255).astype(np.uint8)


def _clouds(
    rows: int, columns: int, rng: np.random.Generator
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Cover 0..1, thinner towards the top: a few octaves of stretched noise."""
    cover = np.zeros((rows, columns), np.float32)
    for octave, strength in ((3, 0.55), (6, 0.30), (12, 0.15)):
        noise = rng.random((octave, octave * 3)).astype(np.float32)
        cover += strength * cv2.resize(noise, (columns, rows), interpolation=cv2.INTER_CUBIC)
    threshold = float(rng.uniform(0.42, 0.62))
    return np.asarray(np.clip((cover - threshold) * 4.0, 0, 1), np.float32)


def _add_stars(sky: np.ndarray[tuple[int, ...], np.dtype[np.float32]], rng: np.random.Generator) -> None:
    count = 60
    y = rng.integers(0, sky.shape[0] - 40, count)
    x = rng.integers(0, sky.shape[1], count)
    sky[y, x] += rng.uniform(30, 120, (count, 1))


def _add_skyline(
    sky: np.ndarray[tuple[int, ...], np.dtype[np.float32]], light: Light, rng: np.random.Generator
) -> None:
    """Hills, then distant blocks, almost lost in the haze."""
    rows, columns = sky.shape[:2]
    haze = np.array(light.haze_bgr)
    dark = np.array((110, 105, 92)) * np.array(light.gain_bgr)
    x = np.arange(columns)
    for layer, (height, mix) in enumerate(((0.13, 0.25), (0.08, 0.42))):
        phase = rng.uniform(0, 6.28, 3)
        ridge = (
            0.5
            + 0.25 * np.sin(x / 90 + phase[0])
            + 0.15 * np.sin(x / 37 + phase[1])
            + 0.08 * np.sin(x / 13 + phase[2])
        )
        if layer:
            blocks = np.repeat(rng.uniform(0.2, 1.0, columns // 18 + 1), 18)[:columns]
            ridge = np.where(blocks > 0.35, blocks, ridge * 0.5)
        top = (rows - 22 - ridge * height * rows).astype(int)
        mask = np.arange(rows)[:, None] >= top[None, :]
        sky[mask] = haze * (1 - mix) + dark * mix
        if layer and light.lamps_on:
            lit = mask & (rng.random((rows, columns)) < 0.02)
            sky[lit] = (90, 150, 190)
