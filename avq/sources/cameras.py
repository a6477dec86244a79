"""Cameras of this machine and of the network; an unreadable picture is counted, and does not end the camera."""

from __future__ import annotations

import time
from pathlib import Path

import cv2

from avq.errors import DataError, UnreadablePictureError, nearest
from avq.hookspecs import FrameSource
from avq.redaction import redact_uri
from avq.sources.recorded_video import RecordedVideo
from avq.sources.uri import number, parameters, size
from avq.sources.video_capture import CvCapture
from avq.types import U8

#: A live stream with unreadable pictures only for so long is opened anew: its codec may have changed.
_REOPEN_NS = 5_000_000_000

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
        return _Live(str(device), capture, read_timeout_ms)

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


class _Live:
    """Pictures of a live stream; raises DataError when it is silent, closed, or delivers nothing that is readable."""

    live = True

    def __init__(self, name: str, capture: CvCapture, read_timeout_ms: int) -> None:
        self.fps = capture.fps
        self._name = name
        self._capture = capture
        self._read_timeout_ms = read_timeout_ms
        self._frames = 0
        self._unreadable = 0
        self._good_ns = time.monotonic_ns()

    def read(self) -> tuple[U8, int] | None:
        try:
            got = self._capture.read()
        except UnreadablePictureError:
            self._unreadable += 1
            if time.monotonic_ns() - self._good_ns >= _REOPEN_NS:
                raise self._broken("only pictures that cannot be decoded") from None
            raise
        if got is None:
            silent = f"none within {self._read_timeout_ms} ms"
            raise self._broken(silent if self._capture.timed_out else "the other side closed the stream")
        self._frames += 1
        self._good_ns = time.monotonic_ns()
        return got

    def _broken(self, reason: str) -> DataError:
        counted = f"{self._frames} frames"
        if self._unreadable:
            counted += f" and {self._unreadable} that could not be decoded"
        return DataError(
            f"{self._name} stopped delivering",
            seen=f"{counted}, then {reason}",
            fix="check the camera, its cable and the network",
        )

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
                f"{redact_uri(uri)} does not answer with a video stream",
                seen=f"nothing FFmpeg can decode within {open_timeout_ms} ms",
                fix="check address, password and network; a slow camera may need a longer open time-out",
            )
        name = redact_uri(uri)
        if capture.declared_frames:
            return RecordedVideo(name, capture)
        return _Live(name, capture, read_timeout_ms)
