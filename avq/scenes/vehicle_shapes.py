"""The solids behind the vehicles: named quads in units of width, height and length."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from avq.scenes.labels import Points

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
