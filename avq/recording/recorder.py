"""The flight recorder: pictures, boxes, timing and events of a run in one MCAP file."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import cv2
import numpy as np

from avq.errors import RequestError, nearest
from avq.hookspecs import Sink
from avq.recording import schemas
from avq.recording.writer import LogWriter
from avq.types import U8, Frame, Published, StageTimes

FORMATS = ("jpeg", "png", "none")


class RecorderSinkType:
    """``out.mcap?image=jpeg|png|none&quality=90``. JPEG is small, PNG is lossless and slow."""

    schemes = ("mcap", ".mcap")

    def open(self, uri: str, *, labels: Sequence[str]) -> Sink:
        """Raises RequestError on unknown parameters, DataError when the file cannot be created."""
        path, _, query = uri.removeprefix("mcap:").partition("?")
        options = dict(parse_qsl(query))
        for key in options:
            if key not in ("image", "quality"):
                raise RequestError(
                    f"unknown parameter '{key}'", seen=uri, fix=nearest(key, ("image", "quality"))
                )
        quality = options.get("quality", "90")
        if not (quality.isdecimal() and 1 <= int(quality) <= 100):
            raise RequestError("parameter 'quality' is not valid", seen=quality, fix="a whole number 1..100")
        return RecorderSink(
            Path(path), labels=labels, image=options.get("image", "jpeg"), quality=int(quality)
        )


class RecorderSink:
    """Writes every published frame.

    Log times are Unix time: the monotonic capture clock plus one offset, kept in the metadata record ``avq`` as
    ``unix_minus_monotonic_ns``. So ``log_time`` minus the offset is the exact monotonic publish time.

    Args:
        path: the MCAP file; an existing one is replaced.
        labels: class names by id.
        image: "jpeg", "png" (lossless) or "none".
        quality: of JPEG, 1..100.
    """

    def __init__(self, path: Path, *, labels: Sequence[str], image: str = "jpeg", quality: int = 90) -> None:
        if image not in FORMATS:
            raise RequestError(f"there is no image format '{image}'", seen=image, fix=nearest(image, FORMATS))
        self.wants_pixels = image != "none"
        self._labels = tuple(labels)
        self._image = image
        self._quality = quality
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self._log = LogWriter(path, {"unix_minus_monotonic_ns": str(self._offset_ns), "format": "1"})

    def write(self, message: Published, frame: Frame | None) -> None:
        seen = message.detections
        topic = f"/camera/{seen.camera}"
        capture_ns = seen.t_capture_ns + self._offset_ns
        stamp = {
            "log_time_ns": capture_ns + message.age_ns,
            "publish_time_ns": capture_ns,
            "sequence": seen.seq,
        }
        if frame is not None and self.wants_pixels:
            picture = self._picture(frame.pixels, seen.camera, capture_ns)
            self._log.write(f"{topic}/image", schemas.COMPRESSED_IMAGE, picture, **stamp)
        annotations = annotations_message(message, self._labels, capture_ns)
        self._log.write(f"{topic}/annotations", schemas.IMAGE_ANNOTATIONS, annotations, **stamp)
        body = {**message.as_message(self._labels), "dropped_since_last": message.dropped_since_last}
        self._log.write(f"{topic}/detections", schemas.DETECTIONS, body, **stamp)
        self._log.flush()

    def write_timing(self, message: Published, times: StageTimes) -> None:
        """One line of /avq/timing per published frame: what replay needs to repeat the timing."""
        seen = message.detections
        row: dict[str, Any] = {
            "camera": seen.camera,
            "seq": seen.seq,
            "t_capture_ns": seen.t_capture_ns,
            **{f"{stage}_ns": ns for stage, ns in times.items()},
            "age_ns": message.age_ns,
        }
        at_ns = seen.t_capture_ns + self._offset_ns
        self._log.write(
            "/avq/timing",
            schemas.TIMING,
            row,
            log_time_ns=at_ns + message.age_ns,
            publish_time_ns=at_ns,
            sequence=seen.seq,
        )

    def write_event(self, event: Mapping[str, Any]) -> None:
        """One message of /avq/events; ``event["t_ns"]`` is monotonic."""
        at_ns = int(event["t_ns"]) + self._offset_ns
        self._log.write("/avq/events", schemas.EVENT, event, log_time_ns=at_ns, publish_time_ns=at_ns)
        self._log.flush()

    def close(self) -> None:
        self._log.close()

    def _picture(self, pixels: U8, camera: str, capture_ns: int) -> dict[str, Any]:
        settings = [cv2.IMWRITE_JPEG_QUALITY, self._quality] if self._image == "jpeg" else []
        suffix = ".jpg" if self._image == "jpeg" else ".png"
        _, encoded = cv2.imencode(suffix, pixels, settings)
        return picture_message(encoded.tobytes(), self._image, camera, capture_ns)


def _time(unix_ns: int) -> dict[str, int]:
    seconds, nanoseconds = divmod(unix_ns, 1_000_000_000)
    return {"sec": seconds, "nsec": nanoseconds}


def picture_message(encoded: bytes, form: str, camera: str, unix_ns: int) -> dict[str, Any]:
    """foxglove.CompressedImage of an encoded picture; ``form`` is "jpeg" or "png"."""
    return {"timestamp": _time(unix_ns), "frame_id": camera, "data": encoded, "format": form}


_LINE_LOOP = 2


def annotations_message(message: Published, labels: Sequence[str], unix_ns: int) -> dict[str, Any]:
    """foxglove.ImageAnnotations: one closed line and one text per box, one colour per class."""
    stamp = _time(unix_ns)
    seen = message.detections
    rows = zip(
        np.round(seen.boxes_xyxy_px.astype(np.float64), 2).tolist(),
        seen.scores.tolist(),
        seen.class_ids.tolist(),
        strict=True,
    )
    points, texts = [], []
    for (x0, y0, x1, y1), score, class_id in rows:
        color = _color(class_id)
        corners = [{"x": x, "y": y} for x, y in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))]
        points.append(
            {
                "timestamp": stamp,
                "type": _LINE_LOOP,
                "points": corners,
                "outline_color": color,
                "outline_colors": [],
                "fill_color": {**color, "a": 0.0},
                "thickness": 2,
            }
        )
        label = labels[class_id] if class_id < len(labels) else str(class_id)
        texts.append(
            {
                "timestamp": stamp,
                "position": {"x": x0, "y": max(y0 - 3, 12.0)},
                "text": f"{label} {score:.2f}",
                "font_size": 14,
                "text_color": {"r": 1, "g": 1, "b": 1, "a": 1},
                "background_color": {**color, "a": 0.6},
            }
        )
    return {"circles": [], "points": points, "texts": texts}


def _color(class_id: int) -> dict[str, float]:
    """A hue per class, golden-angle steps apart."""
    hue = int(class_id * 137.508) % 180
    hsv = np.array([[[hue, 190, 235]]], np.uint8)
    b, g, r = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0].tolist()
    return {"r": r / 255, "g": g / 255, "b": b / 255, "a": 1.0}
