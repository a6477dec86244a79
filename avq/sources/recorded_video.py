"""Recorded videos: every frame in order, and what could not be read."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

from avq.errors import DataError, UnreadablePictureError
from avq.sources.video_capture import CvCapture, count_packets
from avq.types import U8

_EBML = b"\x1aE\xdf\xa3"
#: Shares of the declared length: a recording that ends before this one was cut off, one with less frames is remarked.
_WHOLE_SHARE = 0.95
_REMARKED_SHARE = 0.9
_COUNTED_BYTES = 1 << 29
_NS = 1_000_000_000


class RecordedVideo:
    """A video with an end; a picture that cannot be decoded raises UnreadablePictureError and is counted.

    Args:
        name: for messages.
        capture: open, before its first frame.
        path: of a local file; None for a remote one, whose length in bytes is not known.
    """

    live = False

    def __init__(self, name: str, capture: CvCapture, path: Path | None = None) -> None:
        self.fps = capture.fps
        self.position_ns = 0
        self.lost: dict[str, int] = {}  # the reader of the source counts unreadable pictures
        self.remark = ""
        self._name = name
        self._path = path
        self._capture = capture
        self._declared_frames = capture.declared_frames
        self._read_frames = 0
        self._unreadable = 0
        self._first_unreadable = 0
        self._trailing: int | None = None  # unreadable pictures behind the last readable one, once at the end

    def read(self) -> tuple[U8, int] | None:
        """Raises DataError when the file ends early, after its last readable frame."""
        if self._trailing is not None:
            self._end()
            return None
        try:
            got = self._capture.read()
        except UnreadablePictureError:
            raise self._counted() from None
        if got is None:
            self._trailing = self._missing_frames()
            self._end()
            return None
        if self._read_frames == 0 and self._path is not None and _is_matroska(self._path):
            # Matroska declares when it ends, not how long it is: a part of a long recording starts late.
            self._declared_frames -= self._capture.pts_frames
        self._read_frames += 1
        self.position_ns = self._capture.position_ns
        return got

    def _counted(self) -> UnreadablePictureError:
        self._unreadable += 1
        self._first_unreadable = self._first_unreadable or self._read_frames + self._unreadable
        return UnreadablePictureError(
            f"picture {self._read_frames + self._unreadable} of {self._name} cannot be decoded"
        )

    def _missing_frames(self) -> int:
        """Return how many frames of the index are missing, where others could not be decoded either.

        Only MP4 and AVI count their frames. Decoders leave out frames whose reference frames were lost.
        """
        counted = self._path is not None and not _is_matroska(self._path)
        if not counted or self._unreadable == 0:
            return 0
        return max(0, self._declared_frames - self._read_frames - self._unreadable)

    def _end(self) -> None:
        if self._trailing:
            self._trailing -= 1
            raise self._counted()
        self._require_whole()
        if self._unreadable:
            self.remark = (
                f"{self._unreadable} of {self._read_frames + self._unreadable} pictures of {self._name} "
                f"cannot be decoded, the first is number {self._first_unreadable}"
            )
        elif self._read_frames < _REMARKED_SHARE * (expected := self._expected_frames()):
            self.remark = (
                f"{self._read_frames} frames of {self._name} could be read, it holds about {expected}"
            )

    def _expected_frames(self) -> int:
        """Return about how many frames the file holds; streams without an index only tell when they are read."""
        if self._path is None or declared_bytes(self._path) or self._path.stat().st_size > _COUNTED_BYTES:
            return self._declared_frames
        return count_packets(str(self._path))

    def _require_whole(self) -> None:
        """Raise DataError for a video without frames, and for one that was cut off."""
        if self._read_frames == 0 and not self._misses_bytes:
            raise DataError(
                f"{self._name} holds no frame that OpenCV can decode",
                seen=f"codec {self._capture.codec}, {self._declared_frames} frames declared",
                fix="convert it with another program, to H.264 say",
            )
        if self._misses_bytes or self._ends_early or self._capture.timed_out:
            raise DataError(
                f"{self._name} ends early: {self._read_frames} frames could be read, "
                f"{self._declared_frames} are declared",
                seen=size_line(self._path) if self._path is not None else "the transfer broke off",
                fix="copy the file again, or cut it at the last readable frame",
            )

    @property
    def _misses_bytes(self) -> bool:
        return self._path is not None and declared_bytes(self._path) > self._path.stat().st_size

    @property
    def _ends_early(self) -> bool:
        """Whether the last frame lies before the declared end; not judged where the container's length is right."""
        if self._path is not None and declared_bytes(self._path):
            return False
        passed = self._read_frames + self._unreadable
        if self.fps and self.position_ns:
            passed = max(passed, round(self.position_ns * self.fps / _NS) + 1)
        return passed < _WHOLE_SHARE * self._declared_frames - 2

    def close(self) -> None:
        self._capture.close()


def size_line(path: Path) -> str:
    """Describe the size of a file, and what its container declares where that is more."""
    size, declared = path.stat().st_size, declared_bytes(path)
    return f"{size} bytes" + (f" of {declared} its container declares" if declared > size else "")


def declared_bytes(path: Path) -> int:
    """How long the container says the file is, in bytes; 0 where it does not say.

    MP4 and MOV: ISO/IEC 14496-12 boxes; AVI: RIFF length; MKV and WebM: EBML segment size.
    """
    with path.open("rb") as file:
        head = file.read(12)
        if len(head) < 12:
            return 0
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
    end, file_bytes = 0, file.seek(0, os.SEEK_END)
    for wanted in (_EBML, b"\x18S\x80g"):
        if end >= file_bytes:
            return end
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
