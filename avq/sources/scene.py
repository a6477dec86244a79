"""scene://: procedural road scenes as a live camera, paced in real time."""

from __future__ import annotations

import time
from typing import Any, Protocol

from avq.errors import RequestError, nearest
from avq.hookspecs import FrameSource
from avq.sources.uri import number, parameters, size, whole
from avq.types import U8

PARAMETERS = ("seed", "fps", "weather", "size", "frames")
SCENES = ("drive",)


class SceneSource:
    """``scene://drive?seed=1&fps=30&weather=night&size=640x360&frames=100``; every parameter is optional."""

    schemes = ("scene",)

    def open(self, uri: str, *, open_timeout_ms: int, read_timeout_ms: int) -> FrameSource:
        """Raises RequestError on an unknown scene, parameter or weather. The time-outs do not apply."""
        return _LiveScene(*asked_drive(uri))

    def check(self, uri: str) -> None:
        """Raises RequestError as ``open``; draws nothing."""
        from avq.scenes.drive import check_drive

        check_drive(**_asked(uri)[0])


class _Picture(Protocol):
    @property
    def pixels(self) -> U8: ...


class DrawnDrive(Protocol):
    """What ``avq.scenes.Drive`` does: the same frame for the same index."""

    def frame(self, index: int) -> _Picture: ...


def asked_drive(uri: str) -> tuple[DrawnDrive, float, int | None]:
    """(drive, frames per second, how many frames or None) of a scene:// URI.

    Raises RequestError on an unknown scene, parameter or weather.
    """
    from avq.scenes import Drive

    wanted, frames = _asked(uri)
    return Drive(**wanted), wanted["fps"], frames


def _asked(uri: str) -> tuple[dict[str, Any], int | None]:
    """The drive's own arguments, and how many frames or None."""
    name = uri.split("://", 1)[1].split("?", 1)[0].strip("/")
    if name not in SCENES:
        raise RequestError(f"there is no scene '{name}'", seen=uri, fix=nearest(name, SCENES))
    table = parameters(uri, PARAMETERS)
    width_px, height_px = size(table, (640, 360))
    wanted = {
        "seed": whole(table, "seed", 0, 0, 2**32 - 1),
        "weather": table.get("weather", "mixed"),
        "width_px": width_px,
        "height_px": height_px,
        "fps": number(table, "fps", 30.0, 0.1, 1000.0),
    }
    return wanted, whole(table, "frames", 0, 1, 10**9) or None


class _LiveScene:
    """Frame i is shown i/fps after the first; a frame that took longer to draw is shown when it is ready."""

    live = True

    def __init__(self, drive: DrawnDrive, fps: float, frames: int | None) -> None:
        self.fps = fps
        self._drive = drive
        self._frames = frames
        self._index = 0
        self._start_ns = 0

    def read(self) -> tuple[U8, int] | None:
        if self._index == self._frames:
            return None
        pixels = self._drive.frame(self._index).pixels
        self._wait_for_its_turn()
        self._index += 1
        return pixels, time.monotonic_ns()

    def _wait_for_its_turn(self) -> None:
        self._start_ns = self._start_ns or time.monotonic_ns()
        due_ns = self._start_ns + int(self._index * 1e9 / self.fps)
        time.sleep(max(0, due_ns - time.monotonic_ns()) / 1e9)

    def close(self) -> None:
        """Nothing to free."""
