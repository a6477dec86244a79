"""One cv2.VideoCapture with its time-outs, which tells an unreadable picture from the end of the stream.

The time-outs work only as constructor parameters (set() later has no effect), and the FFmpeg back end decodes on
one thread: the engine has the cores, and frame-threaded decoding would hold frames back.
"""

from __future__ import annotations

import os
import time
from collections import deque

import cv2

from avq.errors import UnreadablePictureError
from avq.picture_files import decode_picture
from avq.text import utf8
from avq.types import U8

#: Grabs in a row that give nothing and do not wait: the stream has ended. At its end each takes microseconds.
_END_GRABS = 4096
#: A grab that gave nothing after this time has waited for a packet, so one came that cannot be decoded.
_WAITED_NS = 2_000_000
_JPEG_CODECS = ("MJPG", "mjpg", "jpeg")


class CvCapture:
    """Grab, stamp, then decode: the stamp is the arrival of the frame, not the end of its decoding.

    ``grab()`` fails for a picture that cannot be decoded, and at the end: only the grabs after it tell which. JPEG
    pictures are taken as encoded bytes and decoded here: FFmpeg would complete half a picture with grey, and OpenCV
    would stretch pictures of another size to the first one's.

    Args:
        name: URI, path or device.
        backend: cv2.CAP_FFMPEG or cv2.CAP_V4L2.
        open_timeout_ms, read_timeout_ms: of the stream.
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
        self.timed_out = False
        self._descriptor, name = _openable(name)
        self._read_timeout_ns = read_timeout_ms * 1_000_000
        self._arguments = (name, backend, [number for pair in pairs for number in pair])
        self._capture = cv2.VideoCapture(*self._arguments)
        self._declared_height_px = int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        self._as_jpeg = (
            backend == cv2.CAP_FFMPEG
            and self.opened
            and self.codec in _JPEG_CODECS
            and self._capture.set(cv2.CAP_PROP_FORMAT, -1)
        )
        self._pending: deque[tuple[U8, int] | None] = deque()  # None: a picture that cannot be decoded
        self._failed = 0  # grabs that gave nothing since the last one that gave a packet
        self._waited = False  # whether the last of them waited for a packet

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
        """Read the next picture.

        Returns:
            (H, W, 3) uint8 BGR and when it arrived, monotonic ns. None at the end; ``timed_out`` tells a silent
            stream from one that has ended.

        Raises:
            UnreadablePictureError: one picture cannot be decoded; the next call continues after it.
        """
        if not self._pending and not self._grab_next():
            return None
        got = self._pending.popleft()
        if got is None:
            raise UnreadablePictureError("a picture cannot be decoded")
        return got

    def _grab_next(self) -> bool:
        """Grab up to the next picture, and queue it after those that cannot be decoded; False at the end."""
        while self._failed < _END_GRABS:
            began_ns = time.monotonic_ns()
            grabbed = self._capture.grab()
            now_ns = time.monotonic_ns()
            spent_ns = now_ns - began_ns
            if grabbed:
                self._queue_failed()
                self._pending.append(self._decoded(now_ns))
                return True
            if self._read_timeout_ns and spent_ns >= self._read_timeout_ns * 9 // 10:
                self.timed_out = True
                return False
            goes_on = self._waited and spent_ns >= _WAITED_NS  # a packet came after the last failed grab
            if goes_on:
                self._queue_failed()
            self._failed, self._waited = self._failed + 1, spent_ns >= _WAITED_NS
            if goes_on:
                return True
        return False

    def _queue_failed(self) -> None:
        self._pending.extend([None] * self._failed)
        self._failed, self._waited = 0, False

    def _decoded(self, arrived_ns: int) -> tuple[U8, int] | None:
        decoded, data = self._capture.retrieve()
        if not decoded or data is None:
            return None
        if not self._as_jpeg:
            return data, arrived_ns  # type: ignore[return-value]
        try:
            pixels = decode_picture(data, rotate=False)  # type: ignore[arg-type]
        except ValueError:
            return None
        if 2 * pixels.shape[0] == self._declared_height_px:  # the first picture decides
            return self._whole_frames(arrived_ns)
        self._declared_height_px = 0
        return pixels, arrived_ns

    def _whole_frames(self, arrived_ns: int) -> tuple[U8, int] | None:
        """Open the stream again with FFmpeg's decoder: each packet holds two JPEG fields of an interlaced frame."""
        self._as_jpeg = False
        self._capture.release()
        self._capture = cv2.VideoCapture(*self._arguments)
        decoded, pixels = self._capture.read()
        return (pixels, arrived_ns) if decoded else None  # type: ignore[return-value]

    def close(self) -> None:
        self._capture.release()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _openable(name: str) -> tuple[int | None, str]:
    """Return a descriptor to close later, or None, and a name that OpenCV takes: it crashes on others than UTF-8."""
    if utf8(name) == name:
        return None, name
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    return descriptor, f"/proc/self/fd/{descriptor}"


def count_packets(path: str) -> int:
    """Count the video packets of a file without decoding them; about one per picture."""
    descriptor, path = _openable(path)
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
    count = failed = 0
    while failed < _END_GRABS:
        if capture.grab():
            count, failed = count + 1 + failed, 0
        else:
            failed += 1
    capture.release()
    if descriptor is not None:
        os.close(descriptor)
    return count
