"""One cv2.VideoCapture with its time-outs.

The time-outs work only as constructor parameters (set() later has no effect), and the FFmpeg back end decodes on
one thread: the engine has the cores, and frame-threaded decoding would hold frames back.
"""

from __future__ import annotations

import time

import cv2

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
