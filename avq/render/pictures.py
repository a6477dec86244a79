"""Draw boxes on pictures, embed pictures and clips in a page."""

from __future__ import annotations

import base64
import colorsys
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from avq.atomic_file import atomic_replace
from avq.errors import DataError, MachineError, RequestError
from avq.process import STANDARD_ERROR, suppress_output
from avq.render.page import Html
from avq.types import U8, Detections

#: Wide enough to judge boxes, small enough that a page with eight pairs stays below 3 MB.
PAGE_WIDTH_PX = 880
_JPEG_QUALITY = 80
_GOLDEN_ANGLE = 0.61803398875


def draw_detections(
    pixels: U8, detections: Detections, labels: Sequence[str], *, min_score: float = 0.0
) -> U8:
    """A copy of ``pixels`` ((H, W, 3) uint8 BGR) with a box and a name per detection, best score on top.

    Names that would cover the name of a better box are left out. Line and letters grow with the picture. Boxes
    that are not finite are left out. A class without a name is shown by its number.
    """
    canvas: U8 = np.array(pixels, np.uint8, order="C")
    shown = [i for i in np.argsort(detections.scores, kind="stable") if _drawable(detections, i, min_score)]
    thickness = max(1, round(max(canvas.shape[:2]) / 320))
    for index in shown:
        corners, colour = (
            _corners(canvas, detections, index),
            class_colour_bgr(int(detections.class_ids[index])),
        )
        cv2.rectangle(canvas, corners[:2], corners[2:], colour, thickness, cv2.LINE_AA)
    taken: list[tuple[int, int, int, int]] = []
    for index in reversed(shown):
        class_id = int(detections.class_ids[index])
        name = labels[class_id] if 0 <= class_id < len(labels) else f"class {class_id}"
        text = f"{name} {float(detections.scores[index]):.2f}"
        corners = _corners(canvas, detections, index)
        _draw_chip(canvas, corners, text, class_colour_bgr(class_id), thickness, taken)
    return canvas


def _drawable(detections: Detections, index: int, min_score: float) -> bool:
    finite = bool(np.all(np.isfinite(detections.boxes_xyxy_px[index])))
    return finite and float(detections.scores[index]) >= min_score


def _corners(canvas: U8, detections: Detections, index: int) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 in whole pixels, far ones pulled in so that OpenCV's integers hold them."""
    limit = 4 * max(canvas.shape[:2])
    x0, y0, x1, y1 = (round(float(v)) for v in np.clip(detections.boxes_xyxy_px[index], -limit, limit))
    return x0, y0, x1, y1


def class_colour_bgr(class_id: int) -> tuple[int, int, int]:
    """A colour per class: hues a golden angle apart, bright enough for dark streets."""
    red, green, blue = colorsys.hsv_to_rgb((0.56 + class_id * _GOLDEN_ANGLE) % 1.0, 0.55, 0.98)
    return round(blue * 255), round(green * 255), round(red * 255)


def _draw_chip(
    canvas: U8,
    corners: tuple[int, int, int, int],
    text: str,
    colour: tuple[int, int, int],
    line: int,
    taken: list[tuple[int, int, int, int]],
) -> None:
    """A filled label above the box, else below or inside it; none where a better box's label would be hidden."""
    scale = max(0.36, max(canvas.shape[:2]) / 1350)
    stroke = max(1, round(scale * 1.6))
    plain = text.encode("ascii", "replace").decode()
    (width, height), below = cv2.getTextSize(plain, cv2.FONT_HERSHEY_SIMPLEX, scale, stroke)
    pad = 2 + line
    wide, high = width + 2 * pad, height + below + 2 * pad
    rows, cols = canvas.shape[:2]
    x = min(max(0, corners[0] - line // 2), max(0, cols - wide))
    for top in (corners[1] - high, corners[3], corners[1]):
        y = min(max(0, top), max(0, rows - high))
        place = (x, y, x + wide, y + high)
        if not any(_overlap(place, other) for other in taken):
            break
    else:
        return
    taken.append(place)
    cv2.rectangle(canvas, place[:2], place[2:], colour, cv2.FILLED)
    origin = (x + pad, y + high - pad - below // 2 - 1)
    cv2.putText(canvas, plain, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, (20, 20, 20), stroke, cv2.LINE_AA)


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def picture(pixels: U8, caption: str = "", *, width_px: int = PAGE_WIDTH_PX) -> Html:
    """One picture in the page, as JPEG, never enlarged."""
    note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    rows, cols = _fitted(pixels, width_px).shape[:2]
    source = jpeg_data_uri(pixels, width_px=width_px)
    image = f'<img src="{source}" width="{cols}" height="{rows}" alt="{escape(caption)}">'
    return Html(f"<figure>{image}{note}</figure>")


def picture_pair(left: U8, right: U8, captions: tuple[str, str]) -> Html:
    """Two pictures to compare: side by side, or below each other on a phone."""
    return Html(f'<div class="pair">{picture(left, captions[0])}{picture(right, captions[1])}</div>')


def video(file_name: str, caption: str = "") -> Html:
    """Return a clip in the folder of the page; ``file_name`` is relative to it.

    Raises RequestError for anything but a relative path without '..': a page must not reach elsewhere.
    """
    path = PurePosixPath(file_name)
    if path.is_absolute() or ".." in path.parts or ":" in file_name or not file_name:
        raise RequestError(
            "the clip is not in the folder of its page",
            seen=file_name,
            fix="give a file name such as drive.webm",
        )
    note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return Html(
        f'<figure><video src="{escape(file_name)}" controls muted loop playsinline preload="metadata">'
        f'<a href="{escape(file_name)}">{escape(file_name)}</a></video>{note}</figure>'
    )


def jpeg_data_uri(pixels: U8, *, width_px: int = PAGE_WIDTH_PX) -> str:
    """``data:image/jpeg;base64,...`` of the picture at most ``width_px`` wide."""
    done, encoded = cv2.imencode(".jpg", _fitted(pixels, width_px), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not done:
        raise MachineError(
            "this OpenCV cannot write JPEG", fix="install opencv-python-headless from the package index"
        )
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")


def _fitted(pixels: U8, width_px: int) -> U8:
    rows, cols = pixels.shape[:2]
    if cols <= width_px:
        return pixels
    size = (width_px, max(1, round(rows * width_px / cols)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


# Clips that every browser plays: VP8 in WebM, encoded by the codec in OpenCV's wheel.

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
        with atomic_replace(path) as temporary:
            count = _write(temporary, iter(frames))
            _retime(temporary, fps)
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
    with suppress_output(STANDARD_ERROR):
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
