"""A source: ``ramp://WIDTHxHEIGHT?frames=N`` gives grey pictures that grow brighter."""

from __future__ import annotations

import time
from urllib.parse import parse_qs, urlsplit

import numpy as np

from avq import FrameSource
from avq.errors import RequestError
from avq.types import U8


class RampSource:
    """FileSource: recorded material (``live`` is False), every frame is processed."""

    live = False
    fps = 30.0
    remark = ""

    def __init__(self, width_px: int, height_px: int, frames: int) -> None:
        self._shape = (height_px, width_px, 3)
        self._frames = frames
        self._next = 0
        self.position_ns: int | None = None
        self.lost: dict[str, int] = {}

    def read(self) -> tuple[U8, int] | None:
        if self._next == self._frames:
            return None
        self.position_ns = round(self._next * 1e9 / self.fps)
        level = 255 * self._next // max(1, self._frames - 1)
        self._next += 1
        return np.full(self._shape, level, np.uint8), time.monotonic_ns()

    def close(self) -> None:
        """Nothing to free."""


class RampSourceType:
    """LiveSourceType and UriChecker; made without arguments, again in the capture process, by module and name."""

    schemes = ("ramp",)
    live = False

    def open(self, uri: str, *, open_timeout_ms: int, read_timeout_ms: int) -> FrameSource:
        return RampSource(*_numbers(uri))

    def check(self, uri: str) -> None:
        _numbers(uri)


def _numbers(uri: str) -> tuple[int, ...]:
    """Width and height in pixels, and the number of frames."""
    parts = urlsplit(uri)
    frames = parse_qs(parts.query).get("frames", ["30"])[0]
    numbers = [*parts.netloc.split("x"), frames]
    if len(numbers) != 3 or not all(number.isdigit() for number in numbers):
        raise RequestError("a ramp needs a size", seen=uri, fix="ramp://640x360?frames=30")
    return tuple(int(number) for number in numbers)
