"""Labelled scene: pixels, boxes and class ids."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLASS_NAMES: tuple[str, ...] = ("car", "truck", "pedestrian", "cyclist", "traffic_light")
CAR, TRUCK, PEDESTRIAN, CYCLIST, TRAFFIC_LIGHT = range(5)

# "mixed" lets the drive's seed choose one of the others.
WEATHERS: tuple[str, ...] = ("mixed", "day", "night", "rain", "glare")

Image = NDArray[np.uint8]
Bgr = tuple[float, float, float]
Points = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class LabelledScene:
    """One picture with its exact boxes.

    A box is the extent of the whole object as if nothing stood in front of it, clipped to the picture. An object is
    labelled when at least half of its on-screen silhouette is not covered by nearer things, at least a quarter of
    its extent lies inside the picture, and its box is not tiny (see ``avq.scenes.drive``). Shadows, light
    beams, glows and the poles of traffic lights are not part of an object.

    Attributes:
        pixels: HxWx3 uint8, BGR.
        boxes_xyxy_px: (N, 4) float32, x0 y0 x1 y1 in pixels of ``pixels``, far objects first.
        class_ids: (N,) int64, index into ``CLASS_NAMES``.
        track_ids: (N,) int64, the same object keeps its number through a drive.
    """

    pixels: Image
    boxes_xyxy_px: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    track_ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
