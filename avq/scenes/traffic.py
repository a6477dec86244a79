"""Moving objects: streams of vehicles and people on loops along the road, in closed form of time.

A stream's object passes behind the camera (or out of sight ahead), and its place on the loop is taken by the next
generation, which looks different. So a drive never ends and any frame can be computed alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from avq.scenes.labels import CAR, CYCLIST, PEDESTRIAN, TRUCK
from avq.scenes.people import CLOTHES, HAIR, SKINS, TROUSERS, PersonLook
from avq.scenes.road import LANE_M, RoadLayout
from avq.scenes.vehicles import PAINTS, VehicleLook

# Motion of the ego vehicle in closed form, so that any frame can be drawn first.


@dataclass(frozen=True)
class Route:
    """Speed, bends and shake of one drive."""

    speed_m_s: float
    surge_m: float
    surge_rad_s: float
    bend_per_m: float
    bend_rad_s: float
    phases: tuple[float, float, float, float]

    def travelled_m(self, t_s: float) -> float:
        """Distance since the start; its speed stays positive."""
        return 400.0 + self.speed_m_s * t_s + self.surge_m * math.sin(self.surge_rad_s * t_s + self.phases[0])

    def braking(self, t_s: float) -> bool:
        return math.sin(self.surge_rad_s * t_s + self.phases[0]) > 0.55

    def curvature_per_m(self, t_s: float) -> float:
        return self.bend_per_m * math.sin(self.bend_rad_s * t_s + self.phases[1])

    def turned(self, t_s: float) -> float:
        """-1..1: how far the far background has moved sideways, the integral of the bend."""
        return -math.cos(self.bend_rad_s * t_s + self.phases[1])

    def sway_m(self, t_s: float) -> float:
        return 0.22 * math.sin(0.5 * t_s + self.phases[2])

    def pitch(self, t_s: float) -> float:
        """-1..1, small and fast like a suspension."""
        return 0.6 * math.sin(1.9 * t_s + self.phases[3]) + 0.4 * math.sin(5.3 * t_s + self.phases[0])


def route_for(rng: np.random.Generator) -> Route:
    speed = float(rng.uniform(6.0, 13.0))
    surge_rate = float(rng.uniform(0.15, 0.4))
    phases = rng.uniform(0, 2 * math.pi, 4)
    return Route(
        speed_m_s=speed,
        surge_m=0.45 * speed / surge_rate * float(rng.uniform(0.2, 1.0)),
        surge_rad_s=surge_rate,
        bend_per_m=1 / 420 * float(rng.uniform(0.1, 1.0)),
        bend_rad_s=float(rng.uniform(0.1, 0.25)),
        phases=(float(phases[0]), float(phases[1]), float(phases[2]), float(phases[3])),
    )


@dataclass(frozen=True)
class Actor:
    """One object at one instant: x, z of its near end in metres from the camera."""

    class_id: int
    x_m: float
    z_m: float
    look: VehicleLook | PersonLook
    track_id: int
    oncoming: bool = False
    phase: float = 0.0
    alert: bool = False  # a vehicle brakes; a walker is seen from the side


@dataclass(frozen=True)
class Stream:
    """Objects of one kind on one path.

    ``kind``: lane | parked | walk | cross | cycle. ``speed_m_s`` is along the ego's direction.
    """

    kind: str
    number: int
    x_m: float
    speed_m_s: float
    loop_m: float
    behind_m: float
    starts_m: tuple[float, ...]
    seed: int
    x_far_m: float = 0.0


@lru_cache(maxsize=4096)
def vehicle_look(seed: int, stream: int, slot: int, generation: int, truck_share: float) -> VehicleLook:
    rng = np.random.default_rng((seed, 11, stream, slot, generation))
    paint = PAINTS[rng.integers(len(PAINTS))]
    jitter = rng.uniform(0.88, 1.1)
    tint = (min(paint[0] * jitter, 250.0), min(paint[1] * jitter, 250.0), min(paint[2] * jitter, 250.0))
    if rng.random() < truck_share:
        pale = float(rng.uniform(120, 235))
        box = (pale, pale * 0.98, pale * 0.96) if rng.random() < 0.65 else PAINTS[rng.integers(len(PAINTS))]
        size = (float(rng.uniform(2.3, 2.55)), float(rng.uniform(3.0, 3.9)), float(rng.uniform(6.5, 9.0)))
        return VehicleLook(*size, "box_truck", tint, box)
    body = ("sedan", "hatch", "suv", "van")[rng.choice(4, p=(0.34, 0.28, 0.26, 0.12))]
    width, height, length = {
        "sedan": (1.80, 1.45, 4.6), "hatch": (1.74, 1.50, 3.9), "suv": (1.90, 1.72, 4.6), "van": (1.95, 2.05, 5.0),
    }[body]  # fmt: skip
    grow = rng.uniform(0.95, 1.05, 3)
    return VehicleLook(
        width * float(grow[0]), height * float(grow[1]), length * float(grow[2]), body, tint, tint
    )


@lru_cache(maxsize=4096)
def person_look(seed: int, stream: int, slot: int, generation: int, turn: float) -> PersonLook:
    rng = np.random.default_rng((seed, 12, stream, slot, generation))
    height = float(rng.uniform(1.52, 1.9)) if rng.random() < 0.88 else float(rng.uniform(1.15, 1.4))
    coat, trousers = CLOTHES[rng.integers(len(CLOTHES))], TROUSERS[rng.integers(len(TROUSERS))]
    return PersonLook(
        height, coat, trousers, SKINS[rng.integers(len(SKINS))], HAIR[rng.integers(len(HAIR))], turn
    )


class _Planner:
    """Collects streams and draws their chances from one generator, in order."""

    def __init__(self, seed: int, rng: np.random.Generator) -> None:
        self.seed, self.rng = seed, rng
        self.made: list[Stream] = []

    def count(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high))

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def add(
        self, kind: str, count: int, x: float, speed: float, loop: float, behind: float, x_far: float = 0.0
    ) -> None:
        """``count`` objects spread over the loop, never quite evenly."""
        if count:
            uneven = np.arange(count) + self.rng.uniform(-0.22, 0.22, count)
            gaps = uneven * (loop / count) + self.rng.uniform(0, loop)
            starts = tuple(float(g) for g in gaps)
            self.made.append(Stream(kind, len(self.made), x, speed, loop, behind, starts, self.seed, x_far))


def streams_for(layout: RoadLayout, route: Route, seed: int, rng: np.random.Generator) -> tuple[Stream, ...]:
    """All streams of one drive. Objects of one lane share one speed, so they never meet."""
    plan = _Planner(seed, rng)
    _plan_vehicles(plan, layout, route)
    _plan_people(plan, layout)
    return tuple(plan.made)


def _plan_vehicles(plan: _Planner, layout: RoadLayout, route: Route) -> None:
    plan.add("lead", plan.count(1, 3), layout.same_lanes_m[0], 0.0, 60.0, 0.0)
    for x in layout.same_lanes_m[1:]:
        plan.add("lane", plan.count(2, 5), x, route.speed_m_s + plan.between(-4, 2), 140.0, 9.0)
    for x in layout.oncoming_lanes_m:
        plan.add("lane", plan.count(2, 6), x, -plan.between(7, 13), 150.0, 10.0)
    if layout.parking:
        plan.add("parked", plan.count(2, 8), layout.right_edge_m - 1.05, 0.0, 105.0, 6.0)
        plan.add("parked", plan.count(1, 7), layout.left_edge_m + 1.05, 0.0, 105.0, 6.0)


def _plan_people(plan: _Planner, layout: RoadLayout) -> None:
    right = (layout.right_edge_m + 0.7, layout.right_wall_m - 0.4)
    left = (layout.left_wall_m + 0.4, layout.left_edge_m - 0.7)
    for pavement in (right, left):
        for speed in (1.3, -1.2):
            count, x = plan.count(0, 5), plan.between(*pavement)
            plan.add("walk", count, x, speed * plan.between(0.8, 1.3), 80.0, 1.0)
    plan.add("cross", plan.count(0, 4), layout.left_edge_m - 0.8, 0.0, 75.0, 0.0, layout.right_edge_m + 0.8)
    kerb = layout.same_lanes_m[-1] + LANE_M / 2 + 0.65
    plan.add("cycle", plan.count(0, 4), kerb, plan.between(4, 6), 75.0, 2.0)
    kerb = layout.oncoming_lanes_m[-1] - LANE_M / 2 + 0.1
    plan.add("cycle", plan.count(0, 3), kerb, -plan.between(4, 6), 75.0, 2.0)


def actors_at(streams: tuple[Stream, ...], route: Route, t_s: float) -> list[Actor]:
    """Everything that moves, at one instant, unsorted."""
    travelled = route.travelled_m(t_s)
    found = []
    for stream in streams:
        for slot, start in enumerate(stream.starts_m):
            found.append(_place(stream, slot, start, route, travelled, t_s))
    return found


def _place(stream: Stream, slot: int, start_m: float, route: Route, travelled_m: float, t_s: float) -> Actor:
    if stream.kind == "lead":
        return _lead(stream, slot, start_m, route, t_s)
    ahead = start_m + stream.speed_m_s * t_s - travelled_m + stream.behind_m
    generation = math.floor(ahead / stream.loop_m)
    z = ahead - generation * stream.loop_m - stream.behind_m
    who = generation + 1_000_000  # seeds and tracks must not be negative
    track = (stream.number * 64 + slot) * 10_000_000 + who
    oncoming = stream.speed_m_s < 0
    seed, number = stream.seed, stream.number
    if stream.kind in ("lane", "parked"):
        look = vehicle_look(seed, number, slot, who, 0.28 if stream.kind == "lane" else 0.10)
        class_id = TRUCK if look.body == "box_truck" else CAR
        parked_towards = stream.kind == "parked" and stream.x_m < 0
        return Actor(class_id, stream.x_m, z, look, track, oncoming or parked_towards)
    person = person_look(seed, number, slot, who, -1.0 if oncoming else 1.0)
    if stream.kind == "cycle":
        return Actor(CYCLIST, stream.x_m, z, person, track, oncoming, t_s * 6.5 + start_m)
    if stream.kind == "cross":
        return _crossing(stream, start_m, z, person, track, t_s)
    x = stream.x_m + 0.35 * math.sin(start_m * 3.1 + slot)
    return Actor(PEDESTRIAN, x, z, person, track, oncoming, t_s * 7.5 * abs(stream.speed_m_s) / 1.3 + start_m)


def _lead(stream: Stream, slot: int, start_m: float, route: Route, t_s: float) -> Actor:
    """The vehicles ahead in the ego lane keep their distance, more or less."""
    near = 8.0 + start_m % 16.0
    z = near + slot * 24.0 + (0.35 * near) * math.sin(0.23 * t_s + start_m)
    look = vehicle_look(stream.seed, stream.number, slot, 0, 0.30)
    class_id = TRUCK if look.body == "box_truck" else CAR
    return Actor(class_id, stream.x_m, z, look, stream.number * 64 + slot, alert=route.braking(t_s))


def _crossing(stream: Stream, start_m: float, z_m: float, look: PersonLook, track: int, t_s: float) -> Actor:
    """Back and forth across the road, but at the kerb by the time the ego vehicle arrives."""
    width = stream.x_far_m - stream.x_m
    walked = (t_s * 1.35 + start_m) % (2 * width)
    there = walked < width
    x = stream.x_m + (walked if there else 2 * width - walked)
    clear = min(max((z_m - 7.0) / 12.0, 0.0), 1.0)
    kerb = stream.x_far_m if start_m % 2.0 < 1.0 else stream.x_m
    x = kerb + (x - kerb) * clear * clear * (3 - 2 * clear)
    turned = PersonLook(look.height_m, look.coat, look.trousers, look.skin, look.hair, 1.0 if there else -1.0)
    return Actor(PEDESTRIAN, x, z_m, turned, track, phase=t_s * 7.5 + start_m, alert=True)
