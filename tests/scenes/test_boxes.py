"""Boxes are as tight as the drawing: each kind of object is drawn alone and its changed pixels are measured."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from avq.scenes import people as draw_people
from avq.scenes import vehicles as draw_vehicle
from avq.scenes.camera import Camera
from avq.scenes.drive import Visibility
from avq.scenes.labels import Points
from avq.scenes.pen import Pen
from avq.scenes.people import PersonLook, draw_cyclist, draw_pedestrian
from avq.scenes.signals import draw_traffic_light
from avq.scenes.vehicles import VehicleLook, draw_car, draw_truck
from avq.scenes.weather import Light

# Lit four times over, so that tyres stand out from shadows.
GAIN = 4.0
FLAT = Light("day", (0, 0, 0), (0, 0, 0), (0, 0, 0), 1e9, (GAIN, GAIN, GAIN), False, False)
CAMERA = Camera(640, 360, 166.0, 560.0, 0.0, 0.0)
PERSON = PersonLook(1.75, (60, 50, 200), (200, 90, 60), (150, 180, 225), (25, 30, 40), 1.0)
CAR = VehicleLook(1.8, 1.5, 4.4, "sedan", (40, 30, 200), (40, 30, 200))
TRUCK = VehicleLook(2.5, 3.4, 8.0, "box_truck", (40, 30, 200), (220, 220, 220))


def drawn_box(
    draw: Callable[[Pen], Points], background: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """The box of what changed on a plain canvas, and the box the outline promises."""
    canvas = np.empty((360, 640, 3), np.uint8)
    canvas[:] = np.minimum(np.array(background) * GAIN, 255)
    before = canvas.copy()
    pen = Pen(canvas, FLAT)
    outline = draw(pen)
    changed = np.abs(canvas.astype(int) - before).max(2) > 40
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)
    return found, np.concatenate([outline.min(0), outline.max(0)])


# The ground shadow is no part of an object: the canvas has its colour, so that it cannot be seen.
CASES: dict[str, tuple[Callable[[Pen], Points], tuple[float, float, float]]] = {
    "car ahead": (lambda pen: draw_car(pen, CAMERA, CAR, 0.2, 9.0, False, False), (46, 46, 48)),
    "car, left, oncoming": (lambda pen: draw_car(pen, CAMERA, CAR, -3.5, 12.0, True, False), (46, 46, 48)),
    "car, right": (lambda pen: draw_car(pen, CAMERA, CAR, 4.2, 14.0, False, False), (46, 46, 48)),
    "truck ahead": (lambda pen: draw_truck(pen, CAMERA, TRUCK, 0.0, 14.0, False, False), (40, 40, 42)),
    "truck, left, oncoming": (
        lambda pen: draw_truck(pen, CAMERA, TRUCK, -3.5, 16.0, True, False),
        (40, 40, 42),
    ),
    "truck, right": (lambda pen: draw_truck(pen, CAMERA, TRUCK, 3.5, 18.0, False, False), (40, 40, 42)),
    "pedestrian": (
        lambda pen: draw_pedestrian(pen, CAMERA, PERSON, 2.0, 9.0, 0.8, False),
        draw_people.SHADOW,
    ),
    "walker, sideways": (
        lambda pen: draw_pedestrian(pen, CAMERA, PERSON, 0.0, 9.0, 1.4, True),
        draw_people.SHADOW,
    ),
    "cyclist": (lambda pen: draw_cyclist(pen, CAMERA, PERSON, 1.5, 9.0, 0.5, False), draw_people.SHADOW),
}


@pytest.mark.parametrize("name", CASES)
def test_the_outline_is_the_extent_of_the_drawing(name: str) -> None:
    found, promised = drawn_box(*CASES[name])
    assert np.abs(found - promised).max() <= 2.5, (found, promised)


def test_a_traffic_light_is_its_head_without_the_pole() -> None:
    canvas = np.full((360, 640, 3), 120, np.uint8)
    outline = draw_traffic_light(Pen(canvas, FLAT), CAMERA, 3.0, 14.0, 3.2, 0.0, 0)
    width, height = outline.max(0) - outline.min(0)
    assert 2.2 < height / width < 2.8
    x0, y0 = np.rint(outline.min(0)).astype(int)
    x1, y1 = np.rint(outline.max(0)).astype(int)
    assert (canvas[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] != 120).any(2).all()


def square(x0: float, y0: float, side: float) -> Points:
    return np.array([[x0, y0], [x0 + side, y0], [x0 + side, y0 + side], [x0, y0 + side]])


def test_an_object_mostly_hidden_by_a_nearer_one_is_dropped() -> None:
    hidden, shown = Visibility(640, 360), Visibility(640, 360)
    for visibility, shift in ((hidden, 30.0), (shown, 60.0)):
        visibility.add(square(100, 100, 100), 0, 1)
        visibility.add(square(100 + shift, 100, 100), 1, 2)
    assert [entry.track_id for entry in hidden.labelled()] == [2]
    assert [entry.track_id for entry in shown.labelled()] == [1, 2]


def test_scenery_hides_too() -> None:
    visibility = Visibility(640, 360)
    visibility.add(square(100, 100, 60), 0, 1)
    visibility.hide(square(90, 90, 90))
    assert visibility.labelled() == []


def test_a_box_is_clipped_and_one_that_is_mostly_outside_is_dropped() -> None:
    visibility = Visibility(640, 360)
    visibility.add(square(-50, 100, 100), 0, 1)
    visibility.add(square(-90, 250, 100), 0, 2)
    (entry,) = visibility.labelled()
    assert entry.box == (0.0, 100.0, 50.0, 200.0)


def test_tiny_boxes_are_dropped() -> None:
    visibility = Visibility(640, 360)
    visibility.add(square(100, 100, 6), 0, 1)
    assert visibility.labelled() == []


def test_every_car_body_can_be_drawn_both_ways() -> None:
    canvas = np.zeros((360, 640, 3), np.uint8)
    for body in ("sedan", "hatch", "suv", "van"):
        look = VehicleLook(1.8, 1.6, 4.4, body, draw_vehicle.PAINTS[0], draw_vehicle.PAINTS[1])
        for oncoming in (False, True):
            outline = draw_car(Pen(canvas, FLAT), CAMERA, look, -3.5, 12.0, oncoming, True)
            assert np.isfinite(outline).all()
