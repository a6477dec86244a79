"""Traffic lights: a pole, and the head that is the labelled object."""

from __future__ import annotations

import numpy as np

from avq.scenes.camera import Camera
from avq.scenes.labels import Bgr, Points
from avq.scenes.pen import Pen

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
