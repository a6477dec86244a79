"""Video files, and pictures in a folder, as sources."""

from __future__ import annotations

import re
import time
from pathlib import Path

import cv2

from avq.errors import DataError
from avq.hookspecs import FrameSource
from avq.picture_files import bit_depth_of, largest_value_in, read_picture_file
from avq.sources.recorded_video import RecordedVideo, size_line
from avq.sources.uri import FOLDER, local_path
from avq.sources.video_capture import CvCapture
from avq.types import U8


class VideoSource:
    """What FFmpeg decodes: ``drive.mp4``, ``drive.webm`` ..."""

    schemes = (".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".h264", ".hevc")

    def open(self, uri: str, *, open_timeout_ms: int, read_timeout_ms: int) -> FrameSource:
        """Raises DataError when FFmpeg cannot read the file."""
        path = local_path(uri)
        _refuse_lists(path)
        capture = CvCapture(
            str(path), cv2.CAP_FFMPEG, open_timeout_ms=open_timeout_ms, read_timeout_ms=read_timeout_ms
        )
        if not capture.opened:
            raise DataError(
                f"{path} cannot be read as a video",
                seen=size_line(path),
                fix="play it with another program; a file cut off while recording may lack its index",
            )
        return RecordedVideo(str(path), capture, path)


def _refuse_lists(path: Path) -> None:
    """Refuse text: FFmpeg would open the files that a playlist or ffconcat list names, whatever its suffix."""
    with path.open("rb") as file:
        head = file.read(256)
    if head and not any(byte < 32 and byte not in b"\t\n\f\r" for byte in head):
        raise DataError(
            f"{path} cannot be read as a video",
            seen=f"text: {head[:24]!r}",
            fix="name the video itself; playlists and lists of files are not followed",
        )


# A folder of pictures, or one picture, in natural order of their names.

#: Files of a folder that are read at the start to find the bits of 16-bit pictures.
_EXAMINED = 256

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


class PictureSource:
    """``folder/of/images`` or ``one.jpg``. Files of other kinds and hidden files are not looked at."""

    schemes = (*SUFFIXES, FOLDER)

    def open(self, uri: str, *, open_timeout_ms: int, read_timeout_ms: int) -> FrameSource:
        """Raises DataError when the folder holds no pictures. The time-outs do not apply."""
        path = local_path(uri)
        paths = sorted(_pictures(path), key=_natural) if path.is_dir() else [path]
        if not paths:
            raise DataError(
                f"{path} holds no pictures",
                seen=f"{sum(1 for _ in path.iterdir())} entries",
                fix=f"pictures are files named {', '.join(SUFFIXES)}, directly in the folder",
            )
        return _Pictures(paths)


def _pictures(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    ]


def _natural(path: Path) -> list[tuple[int, str]]:
    """frame2 before frame10; equal numbers are ordered by their text."""
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _bit_depth(paths: list[Path]) -> int:
    """Bits of the values of 16-bit files, found over an even selection of them."""
    examined = paths[:: max(1, -(-len(paths) // _EXAMINED))]
    largest = [value for value in map(largest_value_in, examined) if value is not None]
    return bit_depth_of(max(largest)) if largest else 16


class _Pictures:
    """An unreadable picture is counted in ``lost`` and skipped; a source with none readable is an error."""

    live = False
    fps = 0.0
    position_ns = None

    def __init__(self, paths: list[Path]) -> None:
        self.lost: dict[str, int] = {}
        self.remark = ""
        self._paths = paths
        self._next = 0
        self._delivered = False
        self._bit_depth = _bit_depth(paths)

    def read(self) -> tuple[U8, int] | None:
        while self._next < len(self._paths):
            path = self._paths[self._next]
            self._next += 1
            try:
                pixels = read_picture_file(path, bit_depth=self._bit_depth)
            except ValueError as error:
                self._count_unreadable(path, str(error))
                continue
            self._delivered = True
            return pixels, time.monotonic_ns()
        self._check_any()
        return None

    def _count_unreadable(self, path: Path, why: str) -> None:
        self.lost["unreadable"] = self.lost.get("unreadable", 0) + 1
        self.remark = self.remark or f"{path} cannot be read as a picture ({why})"

    def _check_any(self) -> None:
        if not self._delivered:
            raise DataError(
                "none of the pictures can be read",
                seen=f"{len(self._paths)} files; first: {self._paths[0]}",
                fix="check that they are whole JPEG, PNG, BMP, WebP, TIFF or PNM files",
            )

    def close(self) -> None:
        """Nothing to free."""
