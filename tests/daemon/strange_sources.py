"""Sources of an outside package, good and bad; loaded inside the capture process by name."""

from __future__ import annotations

import ctypes
import os
import sys
import time

import numpy as np

from avq.hookspecs import FrameSource, SourceType
from avq.types import U8


class _Strange:
    live = True
    fps = 0.0

    def __init__(self, name: str) -> None:
        self._name = name
        self._seq = 0

    def read(self) -> tuple[U8, int] | None:
        self._seq += 1
        if self._name == "flood":
            time.sleep(0.002)
            return (
                (np.full((16, 16, 3), self._seq, np.uint8), time.monotonic_ns()) if self._seq <= 150 else None
            )
        if self._seq > 5:
            self._misbehave()
        if self._name == "grey" and self._seq > 5:
            return np.zeros((16, 16), np.uint8), time.monotonic_ns()
        size = 16 * self._seq if self._name == "growing" else 16
        return np.full((size, size, 3), self._seq, np.uint8), time.monotonic_ns()

    def _misbehave(self) -> None:
        if self._name == "hang":
            time.sleep(3600)
        elif self._name == "raise":
            raise KeyError("a plugin's bug")
        elif self._name == "crash":
            ctypes.string_at(0)
        elif self._name == "babble":
            os.write(int(sys.argv[1]), b"\x05\0\0\0babble")
        elif self._name == "noisy":
            print("x" * 200_000, flush=True)
        time.sleep(0.01)

    def close(self) -> None:
        """Nothing to free."""


class StrangeSource:
    schemes = ("strange",)

    def open(self, uri: str, *, open_timeout_ms: int, read_timeout_ms: int) -> FrameSource:
        return _Strange(uri.partition("://")[2])


def types() -> list[SourceType]:
    return [StrangeSource()]
