"""One cv2.VideoCapture with its time-outs.

The time-outs work only as constructor parameters (set() later has no effect), and the FFmpeg back end decodes on
one thread: the engine has the cores, and frame-threaded decoding would hold frames back.
"""

from __future__ import annotations

import time
from pathlib import Path

import cv2

from avq.errors import DataError, nearest
from avq.hookspecs import FrameSource
from avq.sources.uri import number, parameters, redact_credentials, size
from avq.types import U8


class CvCapture:
    """Grab, stamp, then decode: the stamp is the arrival of the frame, not the end of its decoding.

    Args:
        name: URI, path or device.
        backend: cv2.CAP_FFMPEG or cv2.CAP_V4L2.
        settings: further (property, value) pairs for the constructor.
    """

    def __init__(
        self,
        name: str,
        backend: int,
        *,
        open_timeout_ms: int,
        read_timeout_ms: int,
        settings: tuple[tuple[int, int], ...] = (),
    ) -> None:
        pairs: tuple[tuple[int, int], ...] = (*settings,)
        if backend == cv2.CAP_FFMPEG:
            pairs += (
                (cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, open_timeout_ms),
                (cv2.CAP_PROP_READ_TIMEOUT_MSEC, read_timeout_ms),
                (cv2.CAP_PROP_N_THREADS, 1),
            )
        self._capture = cv2.VideoCapture(name, backend, [number for pair in pairs for number in pair])

    @property
    def opened(self) -> bool:
        return self._capture.isOpened()

    @property
    def fps(self) -> float:
        """Nominal frames per second, 0 when unknown or not credible."""
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        return fps if 0 < fps <= 1000 else 0.0

    @property
    def declared_frames(self) -> int:
        """What the container says; 0 for streams and where it does not say."""
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        return int(count) if 0 < count < 2**53 else 0

    @property
    def codec(self) -> str:
        """Four characters, as ``av01``; ``unknown`` where the container does not say."""
        code = int(self._capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
        name = code.to_bytes(4, "little").decode("latin-1").rstrip(" \0")
        return name if name.isascii() and name.isprintable() and name else "unknown"

    @property
    def position_ns(self) -> int:
        """Presentation time of the last frame since the first; 0 where the container has no times."""
        return max(0, round(self._capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6))

    @property
    def pts_frames(self) -> int:
        """The container's own time of the last frame, in frames; 0 where it has none."""
        pts = self._capture.get(cv2.CAP_PROP_PTS)
        return int(pts) if 0 <= pts < 2**53 else 0

    def read(self) -> tuple[U8, int] | None:
        """The next picture (H, W, 3) uint8 BGR and when it arrived, monotonic ns; None at the end."""
        if not self._capture.grab():
            return None
        arrived_ns = time.monotonic_ns()
        decoded, pixels = self._capture.retrieve()
        return (pixels, arrived_ns) if decoded else None  # type: ignore[return-value]

    def close(self) -> None:
        self._capture.release()


# v4l2:///dev/videoN: cameras of this machine.


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


# rtsp:// and http(s)://: network cameras and streams through FFmpeg.


class StreamSource:
    """``rtsp://camera/stream``; a finite file behind http:// is processed frame by frame."""

    schemes = ("rtsp", "rtsps", "http", "https", "rtmp", "udp", "tcp")
    live = True

    def open(self, uri: str, *, open_timeout_ms: int, read_timeout_ms: int) -> FrameSource:
        """Raises DataError when nothing answers within ``open_timeout_ms``."""
        capture = CvCapture(
            uri, cv2.CAP_FFMPEG, open_timeout_ms=open_timeout_ms, read_timeout_ms=read_timeout_ms
        )
        if not capture.opened:
            raise DataError(
                f"{redact_credentials(uri)} does not answer with a video stream",
                seen=f"nothing FFmpeg can decode within {open_timeout_ms} ms",
                fix="check address, password and network; a slow camera may need a longer open time-out",
            )
        return _Stream(uri, capture, read_timeout_ms)


class _Stream:
    def __init__(self, uri: str, capture: CvCapture, read_timeout_ms: int) -> None:
        self.fps = capture.fps
        self.live = capture.declared_frames == 0
        self._uri = uri
        self._capture = capture
        self._read_timeout_ms = read_timeout_ms
        self._frames = 0

    def read(self) -> tuple[U8, int] | None:
        got = self._capture.read()
        if got is not None:
            self._frames += 1
        elif self.live or self._frames == 0:
            raise DataError(
                f"{redact_credentials(self._uri)} stopped delivering",
                seen=f"{self._frames} frames, then none within {self._read_timeout_ms} ms, or the peer closed",
                fix="check the camera and the network",
            )
        return got

    def close(self) -> None:
        self._capture.close()
