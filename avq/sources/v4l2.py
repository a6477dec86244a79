"""v4l2:///dev/videoN: cameras of this machine."""

from __future__ import annotations

from pathlib import Path

import cv2

from avq.errors import DataError, nearest
from avq.hookspecs import FrameSource
from avq.sources.cv_capture import CvCapture
from avq.sources.uri import number, parameters, size
from avq.types import U8


class V4l2Source:
    """``v4l2:///dev/video0?size=1280x720&fps=30``; the driver may choose the nearest mode it has."""

    schemes = ("v4l2",)
    live = True

    def open(self, uri: str, *, open_timeout_ms: int, read_timeout_ms: int) -> FrameSource:
        """Raises DataError when there is no such device, or it is not a camera."""
        device = Path(uri.removeprefix("v4l2://").split("?", 1)[0])
        if not device.exists():
            cameras = [str(path) for path in Path("/dev").glob("video*")]
            fix = nearest(str(device), cameras) if cameras else "connect one: this machine has no /dev/video*"
            raise DataError(f"there is no camera {device}", seen=uri, fix=fix)
        capture = CvCapture(
            str(device),
            cv2.CAP_V4L2,
            open_timeout_ms=open_timeout_ms,
            read_timeout_ms=read_timeout_ms,
            settings=_mode(uri),
        )
        if not capture.opened:
            raise DataError(
                f"{device} cannot be opened as a camera",
                seen=uri,
                fix="check that no other program holds it and that you may read it (group 'video')",
            )
        return _Camera(device, capture)

    def check(self, uri: str) -> None:
        """Raises RequestError on parameters that do not fit."""
        _mode(uri)


def _mode(uri: str) -> tuple[tuple[int, int], ...]:
    table = parameters(uri, ("size", "fps"))
    width_px, height_px = size(table, (0, 0))
    fps = int(number(table, "fps", 0, 1, 1000))
    wanted = (
        (cv2.CAP_PROP_FRAME_WIDTH, width_px),
        (cv2.CAP_PROP_FRAME_HEIGHT, height_px),
        (cv2.CAP_PROP_FPS, fps),
    )
    return tuple((key, value) for key, value in wanted if value)


class _Camera:
    live = True

    def __init__(self, device: Path, capture: CvCapture) -> None:
        self.fps = capture.fps
        self._device = device
        self._capture = capture

    def read(self) -> tuple[U8, int]:
        got = self._capture.read()
        if got is None:
            raise DataError(
                f"{self._device} stopped delivering",
                seen="no frame from the driver",
                fix="check the cable; the camera may have been unplugged",
            )
        return got

    def close(self) -> None:
        self._capture.close()
