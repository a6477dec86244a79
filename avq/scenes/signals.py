"""Place static objects cell by cell along the route: buildings, trees, lamps and junctions with traffic lights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from avq.scenes.background import LEAVES, WALLS, Building, Lamp, Tree
from avq.scenes.camera import Camera
from avq.scenes.labels import Bgr, Points
from avq.scenes.pen import Pen
from avq.scenes.road import RoadLayout

CELL_M = 18.0
CELLS_AHEAD = 7
_TRACK_BASE = 1 << 50


@dataclass(frozen=True)
class Signal:
    """A traffic light's head: where it hangs and when it changes."""

    x_m: float
    centre_m: float
    arm_m: float
    offset_s: float
    track_id: int


@dataclass(frozen=True)
class Cell:
    """One stretch of roadside; every entry is (metres from the cell's start, thing)."""

    buildings: tuple[tuple[float, Building], ...]
    trees: tuple[tuple[float, Tree], ...]
    lamps: tuple[tuple[float, Lamp], ...]
    signals: tuple[tuple[float, Signal], ...]
    crossing: bool


@lru_cache(maxsize=512)
def cell_at(layout: RoadLayout, seed: int, index: int) -> Cell:
    """Return the same cell for the same arguments, independent of earlier calls."""
    rng = np.random.default_rng((seed, 21, index))
    urban = 0.35 + 0.5 * np.random.default_rng((seed, 22)).random()
    buildings, trees = [], []
    for side, x in ((-1.0, layout.left_wall_m), (1.0, layout.right_wall_m)):
        if rng.random() < urban:
            length = CELL_M - float(rng.uniform(0, 4.0))
            wall = WALLS[rng.integers(len(WALLS))]
            back = x + side * float(rng.uniform(0.6, 2.5))
            buildings.append(
                (0.0, Building(back, side, length, int(rng.integers(2, 7)), wall, int(rng.integers(1 << 30))))
            )
            spots = int(rng.integers(0, 2))
        else:
            spots = int(rng.integers(1, 4))
        for _ in range(spots):
            away = side * float(rng.uniform(-0.6, 0.3) if buildings else rng.uniform(0.5, 6.0))
            leaves = LEAVES[rng.integers(len(LEAVES))]
            tree = Tree(x + away, float(rng.uniform(3.8, 7.5)), leaves, float(rng.uniform(-0.3, 0.3)))
            trees.append((float(rng.uniform(0, CELL_M)), tree))
    lamps = []
    if index % 2 == 0:
        side = 1.0 if index % 4 == 0 else -1.0
        edge = layout.right_edge_m if side > 0 else layout.left_edge_m
        lamps.append((9.0, Lamp(edge + side * 0.6, side)))
    junction = bool(rng.random() < 0.42)
    return Cell(
        tuple(buildings),
        tuple(trees),
        tuple(lamps),
        _signals(layout, index, rng) if junction else (),
        junction,
    )


def _signals(layout: RoadLayout, index: int, rng: np.random.Generator) -> tuple[tuple[float, Signal], ...]:
    """Lights on both pavements, and sometimes one on an arm over the lane."""
    offset = float(rng.uniform(0, 12))
    low = float(rng.uniform(2.9, 3.5))
    track = _TRACK_BASE + index * 8
    made = [(4.0, Signal(layout.right_edge_m + 0.55, low, 0.0, offset, track))]
    if rng.random() < 0.75:
        made.append((4.0, Signal(layout.left_edge_m - 0.55, low, 0.0, offset, track + 1)))
    if rng.random() < 0.55:
        x = layout.same_lanes_m[-1] + 0.4
        made.append((4.5, Signal(x, 5.3, layout.right_edge_m + 0.6 - x, offset, track + 2)))
    return tuple(made)


def signal_state(signal: Signal, t_s: float) -> int:
    """0 red, 1 amber, 2 green."""
    phase = (t_s + signal.offset_s) % 12.0
    return 2 if phase < 5.5 else 1 if phase < 7.0 else 0


# Traffic lights: a pole, and the head that is the labelled object.

HEAD_WIDTH_M = 0.58
HEAD_HEIGHT_M = 1.45
POLE: Bgr = (92, 96, 96)
_OFF: tuple[Bgr, ...] = ((34, 34, 74), (30, 62, 74), (38, 66, 34))
_ON: tuple[Bgr, ...] = ((60, 60, 255), (70, 200, 255), (150, 255, 90))


def draw_traffic_light(
    pen: Pen, camera: Camera, x_m: float, z_m: float, centre_m: float, arm_m: float, state: int
) -> Points:
    """One light; ``arm_m`` is how far the head hangs from its pole, ``state`` 0 red, 1 amber, 2 green."""
    u, v, k = camera.foot(x_m, z_m)
    pole_u = u + arm_m * k
    top = v - (centre_m + HEAD_HEIGHT_M * 0.45) * k
    pen.limb((pole_u, v), (pole_u, top), max(0.16 * k, 1.2), POLE)
    if arm_m:
        pen.limb((pole_u, top + 0.2 * k), (u, top + 0.2 * k), max(0.11 * k, 1.0), POLE)
    y = v - centre_m * k
    w, h = HEAD_WIDTH_M * k / 2, HEAD_HEIGHT_M * k / 2
    head = np.array([(u - w, y - h), (u + w, y - h), (u + w, y + h), (u - w, y + h)])
    pen.poly(head, (205, 210, 210))
    pen.poly(np.array([u, y]) + (head - [u, y]) * [0.86, 0.94], (34, 36, 36))
    for index in range(3):
        lamp_y = y + (index - 1) * h * 0.60
        on = index == state
        radius = 0.17 * k
        pen.disc(u, lamp_y, radius, _ON[index] if on else _OFF[index], glow=on)
        if on:
            pen.disc(u, lamp_y - radius * 0.2, radius * 0.45, (220, 245, 250), glow=True)
            colour = _ON[index]
            reach = 5.0 if pen.light.lamps_on else 2.4
            pen.halo(u, lamp_y, radius * reach, (colour[0] * 0.6, colour[1] * 0.6, colour[2] * 0.6))
    return head
