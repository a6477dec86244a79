"""Short clips every browser plays: VP8 in WebM, by the codec inside OpenCV's own wheel."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2

from avq.errors import DataError, MachineError
from avq.types import U8


def write_clip(path: Path, frames: Iterable[U8], fps: float) -> int:
    """Write (H, W, 3) uint8 BGR frames as ``path`` (.webm); returns how many.

    The file appears when it is complete. Frames must share one size; odd sizes lose a row or column, since
    the codec stores colour for 2x2 blocks.

    Raises:
        DataError: no frames, or frames of different sizes.
        MachineError: the codec is missing, or the file cannot be written.
    """
    aside = path.with_name(f".{path.stem}.new-{os.getpid()}.webm")
    try:
        count = _write(aside, iter(frames), fps)
        aside.replace(path)
    except OSError as error:
        raise MachineError(
            f"cannot write the clip {path}",
            seen=error.strerror or str(error),
            fix="check path and free space",
        ) from None
    finally:
        with suppress(OSError):
            aside.unlink()
    return count


def _write(path: Path, frames: Iterator[U8], fps: float) -> int:
    first = next(frames, None)
    if first is None:
        raise DataError("a clip needs at least one frame", fix="give frames")
    height, width = first.shape[0] & ~1, first.shape[1] & ~1
    path.parent.mkdir(parents=True, exist_ok=True)
    with _quiet_stderr():
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"VP80"), fps, (width, height))
    try:
        if not writer.isOpened():
            raise MachineError(
                "this OpenCV cannot write VP8 video",
                seen=f"cv2 {cv2.__version__}, {width}x{height} at {fps:g} fps",
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


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """OpenCV prints that WebM has no tag for VP8, straight to the descriptor; it is right and harmless."""
    saved = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)
