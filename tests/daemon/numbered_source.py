"""A live camera whose frames carry their number in the pixels: numbered://FPS[/COUNT]; 0 is as fast as it can."""

from __future__ import annotations

import time

import numpy as np

from avq.hookspecs import FrameSource, SourceType
from avq.types import U8

BITS = 24
_SIDE_PX = 64


def drawn(number: int) -> U8:
    """(64, 64, 3): one column per bit, black or white."""
    bits = (number >> np.arange(BITS)) & 1
    pixels = np.zeros((_SIDE_PX, _SIDE_PX, 3), np.uint8)
    pixels[:, :BITS] = (bits * 255).astype(np.uint8)[None, :, None]
    return pixels


def number_in(pixels: U8) -> int:
    """The number that was drawn."""
    return int(((pixels[_SIDE_PX // 2, :BITS, 0] > 127) << np.arange(BITS)).sum())


class _Numbered:
    live = True

    def __init__(self, fps: float, count: int | None) -> None:
        self.fps = fps
        self._count = count
        self._number = 0
        self._begin_ns = time.monotonic_ns()

    def read(self) -> tuple[U8, int] | None:
        if self._number == self._count:
            return None
        if self.fps:
            due_ns = self._begin_ns + int(self._number * 1e9 / self.fps)
            time.sleep(max(0, due_ns - time.monotonic_ns()) / 1e9)
        self._number += 1
        return drawn(self._number - 1), time.monotonic_ns()

    def close(self) -> None:
        """Nothing to free."""


class NumberedSource:
    schemes = ("numbered",)
    live = True

    def open(self, uri: str, *, open_timeout_ms: int, read_timeout_ms: int) -> FrameSource:
        fps, _, count = uri.partition("://")[2].partition("/")
        return _Numbered(float(fps), int(count) if count else None)


def types() -> list[SourceType]:
    return [NumberedSource()]
