"""Pedestrians and cyclists: upright figures with moving limbs, drawn in pixels around a point on the ground."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from avq.scenes.camera import Camera
from avq.scenes.labels import Bgr, Points
from avq.scenes.pen import Pen

CLOTHES: tuple[Bgr, ...] = (
    (60, 50, 45), (150, 80, 40), (50, 60, 170), (90, 140, 60), (200, 200, 205), (40, 150, 210),
    (130, 60, 120), (90, 90, 95), (60, 110, 200), (170, 150, 60), (35, 35, 110), (180, 170, 120),
)  # fmt: skip
TROUSERS: tuple[Bgr, ...] = ((80, 55, 40), (40, 40, 42), (110, 85, 60), (70, 80, 95), (95, 95, 100))
SKINS: tuple[Bgr, ...] = ((150, 180, 225), (110, 150, 205), (70, 105, 160), (50, 75, 115))
HAIR: tuple[Bgr, ...] = ((25, 30, 40), (30, 50, 80), (60, 110, 150), (90, 90, 95))
SHADOW: Bgr = (62, 62, 64)


@dataclass(frozen=True)
class PersonLook:
    """Height in metres and colours of one person; ``turn`` is +1 or -1, the way a walker faces."""

    height_m: float
    coat: Bgr
    trousers: Bgr
    skin: Bgr
    hair: Bgr
    turn: float


class _Figure:
    """Places parts given in metres around a foot point and remembers their extent."""

    def __init__(self, pen: Pen, u: float, v: float, scale_px: float) -> None:
        self.pen, self.u, self.v, self.k = pen, u, v, scale_px
        self.corners: list[tuple[float, float]] = []

    def at(self, x: float, y: float) -> tuple[float, float]:
        return self.u + x * self.k, self.v - y * self.k

    def limb(self, a: tuple[float, float], b: tuple[float, float], width: float, bgr: Bgr) -> None:
        pa, pb = self.at(*a), self.at(*b)
        self.pen.limb(pa, pb, max(width * self.k, 1.2), bgr)
        half = 0.5 * width * self.k
        angle = math.atan2(pb[1] - pa[1], pb[0] - pa[0])
        nx, ny = abs(math.sin(angle)) * half, abs(math.cos(angle)) * half
        for px, py in (pa, pb):
            self.corners += [(px - nx, py - ny), (px + nx, py + ny)]

    def disc(self, x: float, y: float, radius: float, bgr: Bgr) -> None:
        px, py = self.at(x, y)
        r = radius * self.k
        self.pen.disc(px, py, r, bgr)
        self.corners += [(px - r, py - r), (px + r, py + r)]

    def shape(self, points: list[tuple[float, float]], bgr: Bgr) -> None:
        px = [self.at(*p) for p in points]
        self.pen.poly(np.array(px), bgr)
        self.corners += px


def _ground_shadow(pen: Pen, u: float, v: float, half_width_px: float) -> None:
    angle = np.arange(10) * (2 * np.pi / 10)
    pen.poly(
        np.stack([u + np.cos(angle) * half_width_px, v + np.sin(angle) * half_width_px * 0.25], 1), SHADOW
    )


def draw_pedestrian(
    pen: Pen, camera: Camera, look: PersonLook, x_m: float, z_m: float, stride: float, sideways: bool
) -> Points:
    """Draws one walker; ``stride`` is the phase of the step in radians. Returns corner points (M, 2) in pixels."""
    u, v, k = camera.foot(x_m, z_m)
    h = look.height_m
    _ground_shadow(pen, u, v, 0.32 * k)
    figure = _Figure(pen, u, v, k)
    swing = math.sin(stride) * (0.21 if sideways else 0.09) * h / 1.7
    lift = abs(math.cos(stride)) * 0.03
    hip, knee, neck = 0.50 * h, 0.27 * h, 0.83 * h
    wide = (0.085 if sideways else 0.125) * h
    dark = (look.trousers[0] * 0.75, look.trousers[1] * 0.75, look.trousers[2] * 0.75)
    coat_dark = (look.coat[0] * 0.75, look.coat[1] * 0.75, look.coat[2] * 0.75)
    apart = 0.0 if sideways else 0.055 * h
    for sign, bgr in ((-1.0, dark), (1.0, look.trousers)):
        foot = (sign * (swing + apart), lift if sign < 0 else 0.0)
        bend = (sign * (swing * 0.45 + apart) + 0.03 * look.turn, knee)
        figure.limb((sign * apart * 0.8, hip), bend, 0.085 * h, bgr)
        figure.limb(bend, (foot[0], foot[1] + 0.03 * h), 0.07 * h, bgr)
        toe = 0.09 * look.turn if sideways else 0.0
        figure.limb(
            (foot[0] - 0.04 * h, foot[1] + 0.02 * h),
            (foot[0] + 0.04 * h + toe, foot[1] + 0.02 * h),
            0.04 * h,
            (30, 30, 34),
        )
    figure.limb((-wide * 0.9, neck - 0.03), (-wide * 0.9 + swing * 0.8, hip - 0.02), 0.055 * h, coat_dark)
    waist = wide * 0.82
    figure.shape(
        [
            (-waist, hip - 0.03 * h),
            (waist, hip - 0.03 * h),
            (wide, neck - 0.05 * h),
            (wide * 0.6, neck),
            (-wide * 0.6, neck),
            (-wide, neck - 0.05 * h),
        ],
        look.coat,
    )
    figure.limb((wide * 0.9, neck - 0.03), (wide * 0.9 - swing * 0.8, hip - 0.02), 0.055 * h, coat_dark)
    figure.limb((0, neck - 0.01), (0, neck + 0.04 * h), 0.05 * h, look.skin)
    figure.disc(0.0, h - 0.068 * h, 0.068 * h, look.hair)
    figure.disc(0.014 * h * look.turn, h - 0.078 * h, 0.052 * h, look.skin)
    return np.array(figure.corners)


def _wheel(camera: Camera, x_m: float, z_m: float, radius_m: float) -> Points:
    angle = np.arange(18) * (2 * np.pi / 18)
    ring = np.stack([np.full(18, x_m), radius_m * (1 + np.sin(angle)), z_m + radius_m * np.cos(angle)], 1)
    return camera.project(ring)


def draw_cyclist(
    pen: Pen, camera: Camera, look: PersonLook, x_m: float, z_m: float, pedal: float, oncoming: bool
) -> Points:
    """Draws one rider along the road, ``pedal`` in radians. Returns corner points (M, 2) in pixels."""
    u, v, k = camera.foot(x_m, z_m + 0.8)
    _ground_shadow(pen, u, v, 0.4 * k)
    wheels = _draw_bicycle(pen, camera, x_m, z_m, k)
    figure = _Figure(pen, u, v, k)
    _draw_rider(figure, look, math.sin(pedal) * 0.13, look.skin if oncoming else look.hair)
    if pen.light.lamps_on:
        x, y = figure.at(0.0, 0.78)
        pen.disc(x, y, max(0.05 * k, 1.0), (235, 250, 255) if oncoming else (50, 40, 255), glow=True)
        pen.halo(x, y, 0.35 * k, (120, 140, 150) if oncoming else (20, 15, 140))
    return np.concatenate([np.array(figure.corners), wheels])


def _draw_bicycle(pen: Pen, camera: Camera, x_m: float, z_m: float, scale_px: float) -> Points:
    """Wheels and frame; returns the extent of the tyres (M, 2) in pixels."""
    near, far = z_m + 0.35, z_m + 1.40
    front, rear = _wheel(camera, x_m, far, 0.34), _wheel(camera, x_m, near, 0.34)
    tyre = 0.055 * scale_px
    for ring in (front, rear):
        # Seen from behind a wheel is a thin upright line, so it also gets a width of its own.
        pen.line(ring, (34, 34, 36), tyre, closed=True)
        x = float(ring[:, 0].mean())
        pen.limb((x, float(ring[:, 1].min())), (x, float(ring[:, 1].max())), tyre, (30, 30, 32))
    joints = [(0.34, near), (0.95, near + 0.15), (0.92, far - 0.2), (0.34, far), (0.30, near + 0.45)]
    frame = camera.project(np.array([(x_m, y, z) for y, z in joints]))
    pen.line(frame[[0, 1, 2, 3, 4, 0]], (40, 40, 170), 0.035 * scale_px)
    wheels = np.concatenate([front, rear])
    return np.concatenate([wheels - tyre / 2, wheels + tyre / 2])


def _draw_rider(figure: _Figure, look: PersonLook, knee: float, face: Bgr) -> None:
    for sign in (-1.0, 1.0):
        lift = sign * knee
        figure.limb((sign * 0.10, 0.92), (sign * 0.13, 0.60 + lift), 0.13, look.trousers)
        figure.limb((sign * 0.13, 0.60 + lift), (sign * 0.11, 0.24 + lift), 0.10, look.trousers)
        figure.limb((sign * 0.11 - 0.06, 0.20 + lift), (sign * 0.11 + 0.06, 0.20 + lift), 0.07, (28, 28, 30))
    figure.limb((-0.30, 1.02), (0.30, 1.02), 0.05, (40, 40, 42))
    figure.limb((-0.19, 1.36), (-0.29, 1.05), 0.09, look.coat)
    figure.limb((0.19, 1.36), (0.29, 1.05), 0.09, look.coat)
    back = [(-0.15, 0.88), (0.15, 0.88), (0.22, 1.34), (0.14, 1.45), (-0.14, 1.45), (-0.22, 1.34)]
    figure.shape(back, look.coat)
    top = 1.45 + 0.16 * look.height_m / 1.7
    figure.disc(0.0, top, 0.125, face)
    helmet = [(-0.135, top), (-0.10, top + 0.10), (0.0, top + 0.14), (0.10, top + 0.10), (0.135, top)]
    figure.shape(helmet, look.coat)
