"""A drive: an endless, smooth, repeatable sequence of labelled scenes."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from avq.errors import RequestError, nearest
from avq.scenes import weather as effects
from avq.scenes.background import (
    MARGIN_PX,
    Building,
    Lamp,
    Tree,
    draw_building,
    draw_lamp,
    draw_tree,
    make_sky,
)
from avq.scenes.camera import Camera
from avq.scenes.labels import CAR, CYCLIST, TRAFFIC_LIGHT, WEATHERS, Image, LabelledScene, Points
from avq.scenes.pen import ONE, SHIFT, Pen
from avq.scenes.people import PersonLook, draw_cyclist, draw_pedestrian
from avq.scenes.road import RoadLayout, draw_crossing, draw_road, layout_for
from avq.scenes.signals import CELL_M, CELLS_AHEAD, Signal, cell_at, draw_traffic_light, signal_state
from avq.scenes.traffic import Actor, Route, Stream, actors_at, route_for, streams_for
from avq.scenes.vehicles import VehicleLook, draw_car, draw_truck
from avq.scenes.weather import Light, light_for

#: Which objects are labelled: at least so much of them is visible, on an occlusion map of half the picture's size.
MIN_VISIBLE_SHARE = 0.5
MIN_INSIDE_SHARE = 0.25
# Of the picture's height: a box less tall or less than half as wide is noise, not an object.
MIN_HEIGHT_SHARE = 1 / 45
_SCENERY = 255


@dataclass
class _Entry:
    owner: int
    class_id: int
    track_id: int
    box: tuple[float, float, float, float]
    area: int
    window: tuple[int, int, int, int]


@dataclass
class Visibility:
    """Painter's order in numbers: every silhouette overwrites what it hides."""

    width_px: int
    height_px: int
    entries: list[_Entry] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.owners = np.zeros((self.height_px // 2, self.width_px // 2), np.uint8)

    def _paint(self, outline_px: Points, owner: int) -> None:
        limit = 4.0 * self.width_px
        half = np.rint(np.clip(outline_px, -limit, limit) * (ONE / 2)).astype(np.int32)
        hull = cv2.convexHull(half.reshape(-1, 1, 2))
        cv2.fillConvexPoly(self.owners, hull, owner, cv2.LINE_8, SHIFT)

    def hide(self, outline_px: Points) -> None:
        """Scenery in front of what was painted before."""
        self._paint(outline_px, _SCENERY)

    def add(self, outline_px: Points, class_id: int, track_id: int) -> None:
        """One labelled object, drawn after everything behind it."""
        x0, y0 = outline_px.min(0)
        x1, y1 = outline_px.max(0)
        ax, ay = max(x0, 0.0), max(y0, 0.0)
        bx, by = min(x1, float(self.width_px)), min(y1, float(self.height_px))
        owner = min(len(self.entries) + 1, _SCENERY - 1)
        self._paint(outline_px, owner)
        if bx <= ax or by <= ay:
            return
        height = by - ay
        inside = (bx - ax) * height / ((x1 - x0) * (y1 - y0))
        least = MIN_HEIGHT_SHARE * self.height_px
        if height < least or bx - ax < least / 2 or inside < MIN_INSIDE_SHARE:
            return
        window = (int(ay / 2), int(by / 2) + 1, int(ax / 2), int(bx / 2) + 1)
        area = self._count(window, owner)
        self.entries.append(
            _Entry(owner, class_id, track_id, (float(ax), float(ay), float(bx), float(by)), area, window)
        )

    def _count(self, window: tuple[int, int, int, int], owner: int) -> int:
        y0, y1, x0, x1 = window
        return int(np.count_nonzero(self.owners[y0:y1, x0:x1] == owner))

    def labelled(self) -> list[_Entry]:
        """The objects of which enough is still seen."""
        return [
            e for e in self.entries if e.area and self._count(e.window, e.owner) >= MIN_VISIBLE_SHARE * e.area
        ]


HORIZON_SHARE = 0.46
FOCAL_SHARE = 0.875
NEAREST_M = 3.2
_RANDOM_FRAMES = 18_000


@dataclass(frozen=True)
class Drive:
    """An endless drive; ``frame(i)`` depends on nothing but these fields and i.

    Args:
        seed: any non-negative integer.
        weather: one of ``WEATHERS``; "mixed" lets the seed choose.
        width_px, height_px: picture size, at least 64 each.
        fps: frames per second of the drive's own time.
    """

    seed: int
    weather: str = "mixed"
    width_px: int = 640
    height_px: int = 360
    fps: float = 30.0
    _set: _Stage = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_drive(self.seed, self.weather, self.width_px, self.height_px, self.fps)
        object.__setattr__(self, "_set", _build_stage(self))

    def frame(self, index: int) -> LabelledScene:
        """The labelled picture number ``index`` (from 0)."""
        if index < 0:
            raise RequestError(
                "a drive has no frame before its first", seen=f"index={index}", fix="use an index >= 0"
            )
        return _render(self, self._set, index)


@dataclass(frozen=True)
class _Stage:
    """Everything of a drive that does not change with time."""

    light: Light
    layout: RoadLayout
    route: Route
    streams: tuple[Stream, ...]
    sky: Image
    blur_px: int
    noise: int
    sun: tuple[float, float, float]
    rain: float


def check_drive(seed: int, weather: str, width_px: int, height_px: int, fps: float) -> None:
    """Raise RequestError when there can be no such drive; nothing is drawn."""
    if weather not in WEATHERS:
        raise RequestError("unknown weather", seen=repr(weather), fix=nearest(weather, WEATHERS))
    if seed < 0:
        raise RequestError("a seed is a non-negative integer", seen=f"seed={seed}", fix="use seed=0")
    if width_px < 64 or height_px < 64 or fps <= 0:
        raise RequestError(
            "a drive needs a size of at least 64x64 and a positive rate",
            seen=f"{width_px}x{height_px} at {fps} fps",
            fix="use 640x360 at 30",
        )


def _build_stage(drive: Drive) -> _Stage:
    rng = np.random.default_rng((drive.seed, 1))
    drawn = ("day", "night", "rain", "glare")[rng.choice(4, p=(0.4, 0.22, 0.2, 0.18))]
    weather = drawn if drive.weather == "mixed" else drive.weather
    light = light_for(weather, rng)
    layout = layout_for(rng)
    route = route_for(rng)
    streams = streams_for(layout, route, drive.seed, rng)
    sky = make_sky(drive.width_px, drive.height_px, light, rng)
    noise = {"day": 2, "glare": 3, "rain": 4, "night": 6}[weather] + int(rng.integers(0, 3))
    blur = int(rng.integers(1, 4)) if rng.random() < 0.35 else 1
    sun = (float(rng.uniform(0.2, 0.8)), float(rng.uniform(0.12, 0.36)), float(rng.uniform(0.65, 1.0)))
    return _Stage(light, layout, route, streams, sky, blur, noise, sun, float(rng.uniform(0.4, 1.0)))


def _render(drive: Drive, stage: _Stage, index: int) -> LabelledScene:
    t_s = index / drive.fps
    width, height = drive.width_px, drive.height_px
    route = stage.route
    horizon = HORIZON_SHARE * height + route.pitch(t_s) * height / 240
    camera = Camera(
        width, height, horizon, FOCAL_SHARE * width, route.sway_m(t_s), route.curvature_per_m(t_s)
    )
    canvas = np.empty((height, width, 3), np.uint8)
    pen = Pen(canvas, stage.light)
    _paste_sky(canvas, stage, horizon, route.turned(t_s))
    travelled = route.travelled_m(t_s)
    draw_road(pen, camera, stage.layout, travelled)
    visibility = Visibility(width, height)
    _draw_world(pen, camera, stage, drive.seed, travelled, t_s, visibility)
    pixels = _develop(canvas, stage, camera, np.random.default_rng((drive.seed, 31, index)))
    return _scene(pixels, visibility)


def _paste_sky(canvas: Image, stage: _Stage, horizon_px: float, turned: float) -> None:
    """A sub-pixel shifted window of the wide sky picture, its foot on the horizon."""
    rows = int(horizon_px) + 1
    width = canvas.shape[1]
    left = MARGIN_PX * (1 + 0.9 * turned)
    shift = np.array([[1, 0, -left], [0, 1, horizon_px - stage.sky.shape[0] + 1]])
    flags = cv2.INTER_LINEAR
    cv2.warpAffine(
        stage.sky, shift, (width, rows), dst=canvas[:rows], flags=flags, borderMode=cv2.BORDER_REPLICATE
    )


def _draw_world(
    pen: Pen, camera: Camera, stage: _Stage, seed: int, travelled_m: float, t_s: float, visibility: Visibility
) -> None:
    """Buildings first (nothing labelled stands behind one), then all the rest, far to near."""
    first = int(travelled_m // CELL_M) - 1
    things: list[tuple[float, Building | Tree | Lamp | Signal | Actor]] = []
    for index in range(first + CELLS_AHEAD, first - 1, -1):
        cell = cell_at(stage.layout, seed, index)
        start = index * CELL_M - travelled_m
        for at, building in cell.buildings:
            draw_building(pen, camera, building, start + at)
        if cell.crossing and -4 < start < 80:
            draw_crossing(pen, camera, stage.layout, start)
        for group in (cell.trees, cell.lamps, cell.signals):
            things.extend((start + at, thing) for at, thing in group)
    things.extend((actor.z_m, actor) for actor in actors_at(stage.streams, stage.route, t_s))
    things.sort(key=lambda pair: -pair[0])
    for z, thing in things:
        _draw_thing(pen, camera, thing, z, t_s, visibility)


def _draw_thing(
    pen: Pen,
    camera: Camera,
    thing: Building | Tree | Lamp | Signal | Actor,
    z_m: float,
    t_s: float,
    visibility: Visibility,
) -> None:
    pen.at(z_m)
    if isinstance(thing, Actor):
        outline = _draw_actor(pen, camera, thing)
        if outline is not None:
            visibility.add(outline, thing.class_id, thing.track_id)
    elif isinstance(thing, Signal):
        if z_m > NEAREST_M:
            state = signal_state(thing, t_s)
            head = draw_traffic_light(pen, camera, thing.x_m, z_m, thing.centre_m, thing.arm_m, state)
            visibility.add(head, TRAFFIC_LIGHT, thing.track_id)
    elif isinstance(thing, Tree):
        crown = draw_tree(pen, camera, thing, z_m)
        if crown is not None:
            visibility.hide(crown)
    elif isinstance(thing, Lamp):
        draw_lamp(pen, camera, thing, z_m)


def _draw_actor(
    pen: Pen, camera: Camera, actor: Actor
) -> np.ndarray[tuple[int, ...], np.dtype[np.floating]] | None:
    look = actor.look
    if isinstance(look, VehicleLook):
        draw = draw_car if actor.class_id == CAR else draw_truck
        return draw(pen, camera, look, actor.x_m, actor.z_m, actor.oncoming, actor.alert)
    assert isinstance(look, PersonLook)
    u, _, scale = camera.foot(actor.x_m, actor.z_m)
    if actor.z_m < NEAREST_M or not -scale < u < camera.width_px + scale:
        return None
    if actor.class_id == CYCLIST:
        return draw_cyclist(pen, camera, look, actor.x_m, actor.z_m, actor.phase, actor.oncoming)
    return draw_pedestrian(pen, camera, look, actor.x_m, actor.z_m, actor.phase, actor.alert)


def _develop(canvas: Image, stage: _Stage, camera: Camera, rng: np.random.Generator) -> Image:
    """Weather in the air, then lens, then sensor."""
    light = stage.light
    if light.wet:
        effects.add_wet_road(canvas, int(camera.horizon_px))
        effects.add_rain(canvas, stage.rain, rng)
    if light.weather == "glare":
        shift = 300.0 * camera.curvature_per_m
        effects.add_glare(
            canvas, (stage.sun[0] + shift) * camera.width_px, stage.sun[1] * camera.height_px, stage.sun[2]
        )
    canvas = effects.blur_sideways(canvas, stage.blur_px * camera.width_px // 640)
    effects.add_vignette(canvas)
    return effects.add_noise(canvas, stage.noise, rng)


def _scene(pixels: Image, visibility: Visibility) -> LabelledScene:
    seen = visibility.labelled()
    boxes = np.array([entry.box for entry in seen], np.float32).reshape(-1, 4)
    class_ids = np.array([entry.class_id for entry in seen], np.int64)
    return LabelledScene(pixels, boxes, class_ids, np.array([entry.track_id for entry in seen], np.int64))


def random_scene(
    seed: int, weather: str = "mixed", width_px: int = 640, height_px: int = 360
) -> LabelledScene:
    """One scene, independent of its neighbours: some frame of the drive with this seed."""
    drive = Drive(seed, weather, width_px, height_px)
    return drive.frame(int(np.random.default_rng((seed, 41)).integers(_RANDOM_FRAMES)))
