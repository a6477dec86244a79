"""Short clips every browser plays: VP8 in WebM, by the codec inside OpenCV's own wheel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2

from avq.atomic_file import beside
from avq.errors import DataError, MachineError
from avq.muted import STANDARD_ERROR, muted
from avq.types import U8

# libvpx encodes as thoroughly as a second per frame allows, unless a frame is shown for a second: then it works
# in real time, five times faster at the same size. So the clip is encoded at one frame per second and its two
# time fields are set to the wanted rate afterwards (EBML id, length, value; RFC 9559).
_TIMESTAMP_SCALE = bytes.fromhex("2ad7b1 83"), 1_000_000, 3
_DEFAULT_DURATION = bytes.fromhex("23e383 84"), 1_000_000_000, 4
_HEADER_BYTES = 4096


def write_clip(path: Path, frames: Iterable[U8], fps: float) -> int:
    """Write (H, W, 3) uint8 BGR frames as ``path`` (.webm); returns how many.

    The file appears when it is complete. Frames must share one size; odd sizes lose a row or column, since
    the codec stores colour for 2x2 blocks. ``fps`` is 0.25 to 1000.

    Raises:
        DataError: no frames, frames of different sizes, or a frame rate out of range.
        MachineError: the codec is missing, or the file cannot be written.
    """
    if not 0.25 <= fps <= 1000:
        raise DataError("the frame rate of a clip is out of range", seen=f"{fps:g} fps", fix="0.25 to 1000")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside(path) as aside:
            count = _write(aside, iter(frames))
            _retime(aside, fps)
    except OSError as error:
        raise MachineError(
            f"cannot write the clip {path}",
            seen=error.strerror or str(error),
            fix="check path and free space",
        ) from None
    return count


def _write(path: Path, frames: Iterator[U8]) -> int:
    first = next(frames, None)
    if first is None:
        raise DataError("a clip needs at least one frame", fix="give frames")
    height, width = first.shape[0] & ~1, first.shape[1] & ~1
    # OpenCV prints that WebM has no tag for VP8; it is right and harmless.
    with muted(STANDARD_ERROR):
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"VP80"), 1.0, (width, height))
    try:
        if not writer.isOpened():
            raise MachineError(
                "this OpenCV cannot write VP8 video",
                seen=f"cv2 {cv2.__version__}, {width}x{height}",
                fix="install opencv-python-headless from the package index",
            )
        writer.write(first[:height, :width])
        count = 1
        for frame in frames:
            if frame.shape != first.shape:
                raise DataError(
                    "the frames of a clip differ in size",
                    seen=f"frame {count} is {frame.shape}, the first {first.shape}",
                    fix="resize them first",
                )
            writer.write(frame[:height, :width])
            count += 1
    finally:
        writer.release()
    if not path.is_file() or not path.stat().st_size:
        raise MachineError("the video codec wrote nothing", seen=str(path), fix="check the free space")
    return count


def _retime(path: Path, fps: float) -> None:
    """Set the time fields of a WebM file that was written at one frame per second."""
    with path.open("r+b") as file:
        header = file.read(_HEADER_BYTES)
        for mark, one_second, length in (_TIMESTAMP_SCALE, _DEFAULT_DURATION):
            old = mark + one_second.to_bytes(length, "big")
            if old not in header and mark == _TIMESTAMP_SCALE[0]:
                raise MachineError(
                    "the video writer of this OpenCV lays out WebM in an unknown way",
                    seen=f"cv2 {cv2.__version__}",
                    fix="install opencv-python-headless from the package index",
                )
            header = header.replace(old, mark + round(one_second / fps).to_bytes(length, "big"), 1)
        file.seek(0)
        file.write(header)
