"""Cars and trucks as small solids: a template of quads, projected once per vehicle and filled back to front."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avq.scenes.camera import Camera
from avq.scenes.labels import Bgr, Points
from avq.scenes.pen import Pen, fixed
from avq.scenes.vehicle_shapes import car_template, truck_template

GLASS: Bgr = (70, 60, 50)
TYRE: Bgr = (28, 28, 28)
TRIM: Bgr = (48, 46, 44)
PLATE: Bgr = (225, 235, 235)
TAIL: Bgr = (40, 30, 190)
TAIL_LIT: Bgr = (60, 50, 255)
BRAKE: Bgr = (120, 110, 255)
LAMP: Bgr = (215, 220, 225)
LAMP_LIT: Bgr = (235, 250, 255)

PAINTS: tuple[Bgr, ...] = (
    (235, 235, 232), (40, 38, 36), (160, 158, 154), (96, 92, 88), (38, 30, 165), (150, 70, 30),
    (70, 105, 45), (48, 130, 190), (120, 95, 60), (200, 190, 180), (28, 20, 110), (190, 150, 60),
)  # fmt: skip


@dataclass(frozen=True)
class VehicleLook:
    """What one vehicle looks like: size in metres, body shape, paint."""

    width_m: float
    height_m: float
    length_m: float
    body: str  # sedan | hatch | suv | van | box_truck
    paint: Bgr
    second_paint: Bgr


def _wheel_rings(
    look: VehicleLook, x_m: float, z_m: float, side: str, track: float, radius_m: float
) -> Points:
    """The two wheels of one side as (2, 12, 3) rings in metres, ``track`` of the width apart."""
    angle = np.arange(12) * (2 * np.pi / 12)
    rings = np.empty((2, 12, 3))
    rings[..., 0] = x_m + (-track if side == "l" else track) * look.width_m * 0.5
    rings[..., 1] = radius_m * (1 + np.sin(angle))
    for index, where in enumerate((0.19, 0.81)):
        rings[index, :, 2] = z_m + where * look.length_m + radius_m * np.cos(angle)
    return rings


_CAR_SOLID = (
    "near",
    "bumper",
    "wheel_l",
    "wheel_r",
    "cabin",
    "roof",
    "deck",
    "side_l",
    "side_r",
    "cab_l",
    "cab_r",
)
_TRUCK_SOLID = ("box", "wheel_l", "wheel_r", "side_l", "side_r", "cab_l", "cab_r", "bumper")


def _draw_wheels(pen: Pen, rings_px: Points) -> None:
    hub = rings_px.mean(1, keepdims=True)
    hubs = fixed(hub + (rings_px - hub) * 0.55)
    for tyre, rim in zip(fixed(rings_px), hubs, strict=True):
        pen.cut(tyre, TYRE)
        pen.cut(rim, (120, 120, 120))


def _off_screen(pen: Pen, outline_px: Points) -> bool:
    """Nothing of it is inside the picture."""
    x = outline_px[:, 0]
    return bool(x.max() < 0 or x.min() > pen.width_px)


def _shade(bgr: Bgr, factor: float) -> Bgr:
    return (min(bgr[0] * factor, 255), min(bgr[1] * factor, 255), min(bgr[2] * factor, 255))


def _visible_side(camera: Camera, look: VehicleLook, x_m: float, z_m: float) -> str:
    """'l', 'r' or '': which flank the camera sees."""
    offset = camera.x_towards(x_m, z_m)
    if abs(offset) <= look.width_m * 0.5:
        return ""
    return "l" if offset > 0 else "r"


def draw_car(
    pen: Pen, camera: Camera, look: VehicleLook, x_m: float, z_m: float, oncoming: bool, braking: bool
) -> Points:
    """Draws one car whose near end is at z; returns its silhouette's corner points (M, 2) in pixels."""
    names, template = car_template(look.body, oncoming)
    size = np.array([look.width_m, look.height_m, look.length_m])
    px = camera.project(template * size + np.array([x_m, 0.0, z_m]))
    outline = px[[names[name] for name in _CAR_SOLID]].reshape(-1, 2)
    if _off_screen(pen, outline):
        return outline
    side = _visible_side(camera, look, x_m, z_m)
    paint = look.paint
    close = (px[0, 1, 0] - px[0, 0, 0]) > 14

    fixed_px = fixed(px)

    def fill(name: str, bgr: Bgr) -> None:
        pen.cut(fixed_px[names[name]], bgr)

    fill("shadow", (46, 46, 48))
    if side:
        fill(f"side_{side}", _shade(paint, 0.72))
        if close:
            fill(f"skirt_{side}", _shade(paint, 0.50))
            _draw_wheels(pen, camera.project(_wheel_rings(look, x_m, z_m, side, 1.0, 0.33)))
        fill(f"cab_{side}", _shade(paint, 0.80))
        if close:
            fill(f"pane_{side}_0", _shade(GLASS, 1.15))
            fill(f"pane_{side}_1", _shade(GLASS, 1.15))
    fill("wheel_l", TYRE)
    fill("wheel_r", TYRE)
    fill("roof", _shade(paint, 1.15))
    fill("cabin", _shade(paint, 0.92))
    fill("glass", GLASS)
    fill("deck", _shade(paint, 1.18))
    if close:
        _draw_reflection(pen, px[names["glass"]])
    fill("sill", (18, 18, 18))
    fill("near", paint)
    fill("bumper", _shade(paint, 0.62))
    if close and oncoming:
        fill("grille", TRIM)
    if close:
        fill("plate", PLATE)
    _draw_lamps(pen, px[names["lamp_l"]], px[names["lamp_r"]], oncoming, braking)
    return outline


def _draw_reflection(pen: Pen, pane_px: Points) -> None:
    """A strip of reflected sky makes glass read as glass."""
    a, b, c, d = pane_px
    pen.poly(np.array([d, c, c * 0.6 + b * 0.4, d * 0.75 + a * 0.25]), (150, 130, 112))


def _draw_lamps(pen: Pen, left: Points, right: Points, oncoming: bool, braking: bool) -> None:
    on = pen.light.lamps_on
    bgr = (LAMP_LIT if on else LAMP) if oncoming else (BRAKE if braking else TAIL_LIT if on else TAIL)
    glow = on or braking
    for quad in (left, right):
        pen.poly(quad, bgr, glow=glow)
        if glow:
            width = float(quad[1, 0] - quad[0, 0])
            centre = quad.mean(0)
            reach = width * (3.4 if oncoming else 2.0)
            tint = (150, 175, 190) if oncoming else (30, 20, 150)
            pen.halo(float(centre[0]), float(centre[1]), min(reach, pen.width_px / 8), tint)


def draw_truck(
    pen: Pen, camera: Camera, look: VehicleLook, x_m: float, z_m: float, oncoming: bool, braking: bool
) -> Points:
    """Draws one box truck whose near end is at z; returns its silhouette's corner points (M, 2) in pixels."""
    names, template = truck_template(oncoming)
    size = np.array([look.width_m, look.height_m, look.length_m])
    px = camera.project(template * size + np.array([x_m, 0.0, z_m]))
    outline = px[[names[name] for name in _TRUCK_SOLID]].reshape(-1, 2)
    if _off_screen(pen, outline):
        return outline
    side = _visible_side(camera, look, x_m, z_m)
    fixed_px = fixed(px)

    def fill(name: str, bgr: Bgr) -> None:
        pen.cut(fixed_px[names[name]], bgr)

    fill("shadow", (40, 40, 42))
    if side:
        fill(f"chassis_{side}", (30, 30, 32))
        _draw_wheels(pen, camera.project(_wheel_rings(look, x_m, z_m, side, 0.98, 0.48)))
    parts = ["cab", "box"] if not oncoming else ["box", "cab"]
    for part in parts:
        if part == "box":
            if side:
                fill(f"side_{side}", _shade(look.second_paint, 0.74))
                fill(f"stripe_{side}", _shade(look.paint, 0.8))
            fill("box", look.second_paint)
        else:
            if side:
                fill(f"cab_{side}", _shade(look.paint, 0.72))
                fill(f"window_{side}", GLASS)
            if oncoming:
                fill("cab", look.paint)
    fill("wheel_l", TYRE)
    fill("wheel_r", TYRE)
    if oncoming:
        fill("screen", GLASS)
        fill("grille", TRIM)
        fill("bumper", (90, 90, 92))
    else:
        fill("under", (36, 36, 38))
        fill("frame", _shade(look.second_paint, 0.7))
        fill("door", _shade(look.second_paint, 0.6))
    _draw_lamps(pen, px[names["lamp_l"]], px[names["lamp_r"]], oncoming, braking)
    return outline
