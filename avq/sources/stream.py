"""rtsp:// and http(s)://: network cameras and streams through FFmpeg."""

from __future__ import annotations

import cv2

from avq.errors import DataError
from avq.hookspecs import FrameSource
from avq.sources.cv_capture import CvCapture
from avq.sources.uri import hidden
from avq.types import U8


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
                f"{hidden(uri)} does not answer with a video stream",
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
                f"{hidden(self._uri)} stopped delivering",
                seen=f"{self._frames} frames, then none within {self._read_timeout_ms} ms, or the peer closed",
                fix="check the camera and the network",
            )
        return got

    def close(self) -> None:
        self._capture.close()
