"""Video files, every frame in order; a file that was cut off says so after its last readable frame."""

from __future__ import annotations

import re
import struct
import time
from pathlib import Path
from typing import BinaryIO

import cv2

from avq.errors import DataError
from avq.hookspecs import FrameSource
from avq.sources.cameras import CvCapture
from avq.sources.uri import FOLDER, local_path
from avq.types import U8

_EBML = b"\x1aE\xdf\xa3"


class VideoSource:
    """What FFmpeg decodes: ``drive.mp4``, ``drive.webm`` ..."""

    schemes = (".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".h264", ".hevc")

    def open(self, uri: str, *, open_timeout_ms: int, read_timeout_ms: int) -> FrameSource:
        """Raises DataError when FFmpeg cannot read the file."""
        path = local_path(uri)
        capture = CvCapture(
            str(path), cv2.CAP_FFMPEG, open_timeout_ms=open_timeout_ms, read_timeout_ms=read_timeout_ms
        )
        if not capture.opened:
            raise DataError(
                f"{path} cannot be read as a video",
                seen=_size_line(path),
                fix="play it with another program; a file cut off while recording may lack its index",
            )
        return _Video(path, capture)


class _Video:
    live = False
    remark = ""

    def __init__(self, path: Path, capture: CvCapture) -> None:
        self.fps = capture.fps
        self.position_ns = 0
        self.lost: dict[str, int] = {}
        self._path = path
        self._capture = capture
        self._declared_frames = capture.declared_frames
        self._read_frames = 0

    def read(self) -> tuple[U8, int] | None:
        """Raises DataError when the file ends early, after its last readable frame."""
        got = self._capture.read()
        if got is None:
            self._check_whole()
            return None
        if self._read_frames == 0 and _is_matroska(self._path):
            # Matroska declares when it ends, not how long it is: a part of a long recording starts late.
            self._declared_frames -= self._capture.pts_frames
        self._read_frames += 1
        self.position_ns = self._capture.position_ns
        return got

    def _check_whole(self) -> None:
        """An end that came early. Counts alone may be estimates, so the container's own length decides first."""
        missing = declared_bytes(self._path) > self._path.stat().st_size
        early = 2 * self._read_frames < self._declared_frames
        if self._read_frames == 0 and not missing:
            raise DataError(
                f"{self._path} holds no frame that OpenCV can decode",
                seen=f"codec {self._capture.codec}, {self._declared_frames} frames declared",
                fix="convert it with another program, to H.264 say",
            )
        if missing or early:
            raise DataError(
                f"{self._path} ends early: {self._read_frames} frames could be read, "
                f"{self._declared_frames} are declared",
                seen=_size_line(self._path),
                fix="copy the file again, or cut it at the last readable frame",
            )

    def close(self) -> None:
        self._capture.close()


def _size_line(path: Path) -> str:
    size, declared = path.stat().st_size, declared_bytes(path)
    return f"{size} bytes" + (f" of {declared} its container declares" if declared > size else "")


def declared_bytes(path: Path) -> int:
    """How long the container says the file is, in bytes; 0 where it does not say.

    MP4 and MOV: ISO/IEC 14496-12 boxes; AVI: RIFF length; MKV and WebM: EBML segment size.
    """
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(0)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
            return _iso_bytes(file, path.stat().st_size)
        if head[:4] == b"RIFF":
            return 8 + int(struct.unpack("<I", head[4:8])[0])
        if head[:4] == _EBML:
            return _ebml_bytes(file)
    return 0


def _is_matroska(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == _EBML


def _iso_bytes(file: BinaryIO, file_bytes: int) -> int:
    """The end of the last top-level box that starts inside the file."""
    end = 0
    while end + 8 <= file_bytes:
        file.seek(end)
        head = file.read(16)
        length = struct.unpack(">I", head[:4])[0]
        if length == 1 and len(head) == 16:
            length = struct.unpack(">Q", head[8:])[0]
        if length == 0:  # "up to the end of the file"
            return file_bytes
        if length < 8:
            return 0
        end += length
    return end


def _ebml_bytes(file: BinaryIO) -> int:
    """The end of the first Segment; a recorder that was killed leaves its size unknown (0)."""
    end = 0
    for wanted in (_EBML, b"\x18S\x80g"):
        file.seek(end)
        if file.read(4) != wanted:
            return 0
        first = file.read(1)
        if not first or first == b"\0":
            return 0
        width = 9 - first[0].bit_length()
        value = int.from_bytes(bytes([first[0] & ((1 << (8 - width)) - 1)]) + file.read(width - 1), "big")
        if value == (1 << (7 * width)) - 1:
            return 0
        end = file.tell() + value
    return end


# A folder of pictures, or one picture, in natural order of their names.

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

    def read(self) -> tuple[U8, int] | None:
        while self._next < len(self._paths):
            path = self._paths[self._next]
            self._next += 1
            pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if pixels is not None:
                self._delivered = True
                return pixels, time.monotonic_ns()  # type: ignore[return-value]
            self._count_unreadable(path)
        self._check_any()
        return None

    def _count_unreadable(self, path: Path) -> None:
        self.lost["unreadable"] = self.lost.get("unreadable", 0) + 1
        self.remark = self.remark or f"{path} cannot be read as a picture"

    def _check_any(self) -> None:
        if not self._delivered:
            raise DataError(
                "none of the pictures can be read",
                seen=f"{len(self._paths)} files; first: {self._paths[0]}",
                fix="check that they are whole JPEG, PNG, BMP, WebP, TIFF or PNM files",
            )

    def close(self) -> None:
        """Nothing to free."""
