"""Draw cars and trucks as solids: a template of quads, projected once per vehicle and filled back to front."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from avq.scenes.camera import Camera
from avq.scenes.labels import Bgr, Points
from avq.scenes.pen import Pen, fixed

# The solids behind the vehicles: named quads in units of width, height and length.

Quad = list[list[float]]
Quads = dict[str, Quad]
Template = tuple[dict[str, int], Points]

# Cabin corners as fractions of the length, from the tail: base rear, top rear, top front, base front; then the
# height of the belt line as a fraction of the height.
_CABINS = {
    "sedan": (0.14, 0.27, 0.55, 0.72, 0.60),
    "hatch": (0.02, 0.10, 0.58, 0.74, 0.58),
    "suv": (0.01, 0.06, 0.62, 0.74, 0.58),
    "van": (0.0, 0.02, 0.76, 0.88, 0.55),
}


def _quad_across(
    x0: float, x1: float, y0: float, y1: float, z0: float, z1: float, squeeze: float = 1.0
) -> Quad:
    """A quad facing along the road: bottom edge at z0, top edge at z1, the top narrower by ``squeeze``."""
    return [[x0, y0, z0], [x1, y0, z0], [x1 * squeeze, y1, z1], [x0 * squeeze, y1, z1]]


def _numbered(quads: Quads) -> Template:
    """Quad names to row numbers, and the corners (K, 4, 3)."""
    return {name: index for index, name in enumerate(quads)}, np.array(list(quads.values()))


@lru_cache(maxsize=32)
def car_template(body: str, oncoming: bool) -> Template:
    """Quad names and their corners (K, 4, 3) in units of width, height and length; z runs away from the camera."""
    rear, top_rear, top_front, front, belt = _CABINS[body]
    if oncoming:
        rear, top_rear, top_front, front = 1 - front, 1 - top_front, 1 - top_rear, 1 - rear
    cabin = (rear, top_rear, top_front, front)
    quads = _car_ends(cabin, belt, oncoming)
    for side, x in (("l", -0.5), ("r", 0.5)):
        quads |= _car_flank(side, x, cabin, belt)
    return _numbered(quads)


_CAR_LOW, _CAR_TOP = 0.17, 0.80


def _car_ends(cabin: tuple[float, float, float, float], belt: float, oncoming: bool) -> Quads:
    """Everything that faces along the road or up."""
    rear, top_rear, top_front, _ = cabin
    low, roof = _CAR_LOW, 0.47 * _CAR_TOP
    plate = (0.14, 0.24, 0.32) if oncoming else (0.15, 0.38, 0.47)
    return {
        "near": _quad_across(-0.5, 0.5, low, belt, 0, 0),
        "bumper": _quad_across(-0.5, 0.5, low, 0.34, -0.008, -0.008),
        "sill": _quad_across(-0.42, 0.42, 0.10, low, 0.02, 0.0),
        "deck": [[-0.5, belt, 0], [0.5, belt, 0], [0.47, belt, rear], [-0.47, belt, rear]],
        "cabin": _quad_across(-0.47, 0.47, belt, 1, rear, top_rear, _CAR_TOP),
        "glass": _quad_across(-0.42, 0.42, belt + 0.04, 0.94, rear, top_rear, _CAR_TOP),
        "roof": [[-roof, 1, top_rear], [roof, 1, top_rear], [roof, 1, top_front], [-roof, 1, top_front]],
        "wheel_l": _quad_across(-0.49, -0.36, 0, 0.24, 0.01, 0.01),
        "wheel_r": _quad_across(0.36, 0.49, 0, 0.24, 0.01, 0.01),
        "lamp_l": _quad_across(-0.49, -0.31, 0.40, 0.52, -0.009, -0.009),
        "lamp_r": _quad_across(0.31, 0.49, 0.40, 0.52, -0.009, -0.009),
        "plate": _quad_across(-plate[0], plate[0], plate[1], plate[2], -0.01, -0.01),
        "grille": _quad_across(-0.24, 0.24, 0.37, 0.50, -0.009, -0.009),
        "shadow": [[-0.56, 0, -0.06], [0.56, 0, -0.06], [0.56, 0, 1.02], [-0.56, 0, 1.02]],
    }


def _car_flank(side: str, x: float, cabin: tuple[float, float, float, float], belt: float) -> Quads:
    """Body, skirt, cabin and two panes of one side."""
    rear, top_rear, top_front, front = cabin
    low, sill = _CAR_LOW, belt + 0.03
    cx = x * 0.94
    top, pane = cx * _CAR_TOP, cx * 0.83
    inner_rear, inner_front = rear + 0.05, front - 0.06
    mid = 0.5 * (inner_rear + inner_front)
    back, ahead = mid - 0.01, mid + 0.02
    return {
        f"side_{side}": [[x, low, 0], [x, belt, 0], [x, belt, 1], [x, low, 1]],
        f"skirt_{side}": [[x, low, 0], [x, 0.30, 0], [x, 0.30, 1], [x, low, 1]],
        f"cab_{side}": [[cx, belt, rear], [top, 1, top_rear], [top, 1, top_front], [cx, belt, front]],
        f"pane_{side}_0": [
            [cx, sill, inner_rear],
            [pane, 0.93, top_rear + 0.04],
            [pane, 0.93, back],
            [cx, sill, back],
        ],
        f"pane_{side}_1": [
            [cx, sill, ahead],
            [pane, 0.93, ahead],
            [pane, 0.93, top_front - 0.03],
            [cx, sill, inner_front],
        ],
    }


@lru_cache(maxsize=4)
def truck_template(oncoming: bool) -> Template:
    """A box truck: cargo box, chassis and cab."""
    cab_z0, cab_z1 = (0.0, 0.2) if oncoming else (0.8, 1.0)
    box_z0, box_z1 = (0.22, 1.0) if oncoming else (0.0, 0.78)
    quads: Quads = {
        "box": _quad_across(-0.5, 0.5, 0.28, 1, box_z0, box_z0),
        "frame": _quad_across(-0.46, 0.46, 0.93, 0.96, box_z0, box_z0),
        "door": _quad_across(-0.012, 0.012, 0.30, 0.97, box_z0 - 0.001, box_z0 - 0.001),
        "under": _quad_across(-0.46, 0.46, 0.13, 0.28, box_z0, box_z0),
        "cab": _quad_across(-0.48, 0.48, 0.16, 0.78, cab_z0, cab_z0 + 0.01),
        "screen": _quad_across(-0.43, 0.43, 0.46, 0.72, cab_z0 - 0.002, cab_z0),
        "grille": _quad_across(-0.28, 0.28, 0.22, 0.36, cab_z0 - 0.002, cab_z0),
        "bumper": _quad_across(-0.49, 0.49, 0.12, 0.19, cab_z0 - 0.004, cab_z0 - 0.004),
        "wheel_l": _quad_across(-0.49, -0.30, 0, 0.22, 0.02, 0.02),
        "wheel_r": _quad_across(0.30, 0.49, 0, 0.22, 0.02, 0.02),
        "shadow": [[-0.54, 0, -0.03], [0.54, 0, -0.03], [0.54, 0, 1.01], [-0.54, 0, 1.01]],
    }
    low = 0.20 if oncoming else 0.22
    quads["lamp_l"] = _quad_across(-0.46, -0.31, low, low + 0.05, -0.006, -0.006)
    quads["lamp_r"] = _quad_across(0.31, 0.46, low, low + 0.05, -0.006, -0.006)
    for side, x in (("l", -0.5), ("r", 0.5)):
        quads[f"side_{side}"] = [[x, 0.28, box_z0], [x, 1, box_z0], [x, 1, box_z1], [x, 0.28, box_z1]]
        quads[f"stripe_{side}"] = [[x, 0.52, box_z0], [x, 0.62, box_z0], [x, 0.62, box_z1], [x, 0.52, box_z1]]
        quads[f"chassis_{side}"] = [
            [x * 0.9, 0.13, 0.02],
            [x * 0.9, 0.28, 0.02],
            [x * 0.9, 0.28, 0.99],
            [x * 0.9, 0.13, 0.99],
        ]
        quads[f"cab_{side}"] = [
            [x * 0.96, 0.16, cab_z0],
            [x * 0.96, 0.78, cab_z0],
            [x * 0.96, 0.78, cab_z1],
            [x * 0.96, 0.16, cab_z1],
        ]
        quads[f"window_{side}"] = [
            [x * 0.97, 0.48, cab_z0 + 0.03],
            [x * 0.97, 0.72, cab_z0 + 0.04],
            [x * 0.97, 0.72, cab_z1 - 0.05],
            [x * 0.97, 0.48, cab_z1 - 0.05],
        ]
    return _numbered(quads)


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
