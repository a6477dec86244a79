"""A source: ``ramp://WIDTHxHEIGHT?frames=N`` gives grey pictures that grow brighter."""

from __future__ import annotations

import time
from urllib.parse import parse_qs, urlsplit

import numpy as np

from avq import FrameSource
from avq.errors import RequestError
from avq.types import U8


class RampSource:
    """Recorded material (``live`` is False): every frame is processed."""

    live = False
    fps = 30.0

    def __init__(self, width_px: int, height_px: int, frames: int) -> None:
        self._shape = (height_px, width_px, 3)
        self._frames = frames
        self._next = 0

    def read(self) -> tuple[U8, int] | None:
        if self._next == self._frames:
            return None
        level = 255 * self._next // max(1, self._frames - 1)
        self._next += 1
        return np.full(self._shape, level, np.uint8), time.monotonic_ns()

    def close(self) -> None:
        """Nothing to free."""


class RampSourceType:
    """Made without arguments: the capture process makes it again, by its module and name."""

    schemes = ("ramp",)

    def open(self, uri: str, *, open_timeout_ms: int, read_timeout_ms: int) -> FrameSource:
        parts = urlsplit(uri)
        frames = parse_qs(parts.query).get("frames", ["30"])[0]
        numbers = [*parts.netloc.split("x"), frames]
        if len(numbers) != 3 or not all(number.isdigit() for number in numbers):
            raise RequestError("a ramp needs a size", seen=uri, fix="ramp://640x360?frames=30")
        return RampSource(*(int(number) for number in numbers))
