"""The flight recorder: images, boxes, stage times and events of a run in one MCAP file."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from avq.clock import UNIX_CLOCK, UnixClock
from avq.errors import RequestError, nearest
from avq.hookspecs import Sink
from avq.output_lock import lock_path, require_unlocked
from avq.recording import schemas
from avq.recording.rotation import Flusher, Limits, RotatingLog
from avq.recording.writer import Entry, json_entry
from avq.types import U8, Frame, Published, StageTimes
from avq.uris import number, one_of, parameters, whole

#: Largest buffer of frames that wait for a miss.
LIMIT_BYTES = 128 * 1024 * 1024


class MissWindowBuffer:
    """Buffer frames and release those in a time window around each deadline miss (``log_on = "miss"``).

    Args:
        before_ns: length of the window before a miss.
        after_ns: length of the window after a miss.
        limit_bytes: size of the buffer; the oldest frames are dropped first.
    """

    def __init__(self, before_ns: int, after_ns: int, limit_bytes: int = LIMIT_BYTES) -> None:
        self._before_ns = before_ns
        self._after_ns = after_ns
        self._limit_bytes = limit_bytes
        self._waiting: deque[tuple[int, Sequence[Entry]]] = deque()
        self._bytes = 0
        self._until_ns: int | None = None

    def take(self, frame: Sequence[Entry], t_ns: int, *, miss: bool) -> list[Entry]:
        """Add a frame and return the entries to write: none, the frame's own, or all that precede a miss."""
        self._drop_older_than(t_ns - self._before_ns)
        if miss:
            self._until_ns = t_ns + self._after_ns
        if self._until_ns is None or t_ns > self._until_ns:
            self._waiting.append((t_ns, frame))
            self._bytes += _size(frame)
            return []
        preceding = [entry for _, entries in self._waiting for entry in entries]
        self._waiting.clear()
        self._bytes = 0
        return [*preceding, *frame]

    def _drop_older_than(self, t_ns: int) -> None:
        while self._waiting and (self._waiting[0][0] < t_ns or self._bytes > self._limit_bytes):
            self._bytes -= _size(self._waiting.popleft()[1])


def _size(entries: Sequence[Entry]) -> int:
    return sum(len(entry.data) for entry in entries)


#: A step of the clock that begins a new file, so that times within a file are in order.
NEW_FILE_STEP_S = 1.0
FORMATS = ("jpeg", "png", "none")
LogOn = Literal["all", "miss"]
LOG_ON: tuple[LogOn, ...] = ("all", "miss")
PARAMETERS = (
    "image", "quality", "log_on", "before_s", "after_s", "rotate_mb", "rotate_s", "keep_mb",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RecordingPolicy:
    """Selection of frames and limits of files.

    Attributes:
        log_on: "all" frames, or the seconds around each deadline "miss"; events are always recorded.
        before_ns: recorded before a miss.
        after_ns: recorded after a miss.
        limits: size and age of the files.
    """

    log_on: LogOn = "all"
    before_ns: int = 5_000_000_000
    after_ns: int = 5_000_000_000
    limits: Limits = field(default_factory=Limits)


class RecorderSinkType:
    """Sink type of the flight recorder.

    ``out.mcap?image=jpeg|png|none&quality=90&log_on=all|miss&before_s=5&after_s=5&rotate_mb=&rotate_s=&keep_mb=``.
    JPEG is small, PNG is lossless and slow.
    """

    schemes = ("mcap", ".mcap")

    def open(self, uri: str, *, labels: Sequence[str]) -> Sink:
        """Open the recorder. Raises RequestError on invalid parameters, DataError when the file cannot be created."""
        path, image, quality, policy = recorder_options(uri)
        return RecorderSink(path, labels=labels, image=image, quality=quality, policy=policy)

    def require_free(self, uri: str) -> None:
        """Raise DataError when another process records under this name."""
        path = recorder_options(uri)[0]
        require_unlocked(path, lock_path(path))


def recorder_options(uri: str) -> tuple[Path, str, int, RecordingPolicy]:
    """Return (file, image format, JPEG quality, policy) of a recorder's URI. Raises RequestError."""
    path = uri.removeprefix("mcap:").partition("?")[0]
    table = parameters(uri, PARAMETERS)
    one_of(table, "image", FORMATS)
    limits = Limits(
        file_bytes=_scaled(table, "rotate_mb", 1e6),
        file_ns=_scaled(table, "rotate_s", 1e9),
        keep_bytes=_scaled(table, "keep_mb", 1e6),
    )
    policy = RecordingPolicy(
        one_of(table, "log_on", LOG_ON),
        _scaled(table, "before_s", 1e9, 5.0) or 0,
        _scaled(table, "after_s", 1e9, 5.0) or 0,
        limits,
    )
    return Path(path), table.get("image", FORMATS[0]), whole(table, "quality", 90, 1, 100), policy


def _scaled(table: Mapping[str, str], key: str, unit: float, default: float | None = None) -> int | None:
    if key not in table and default is None:
        return None
    return round(number(table, key, default or 0.0, 0.0, 1e9) * unit)


class RecorderSink:
    """Record published frames and events.

    A chunk leaves the process when it is full, and at the latest 50 ms after its first message; once a second the
    file is synced to disk. A killed process loses at most 50 ms, a power cut the last second.

    Log times are Unix time: the monotonic capture clock plus an offset, which is read again when the clock is set.
    The metadata record ``avq`` holds the offset at the begin of the file as ``unix_minus_monotonic_ns``; until the
    next event ``clock_stepped``, ``log_time`` minus the offset is the exact monotonic publish time.

    Args:
        path: the MCAP file; where it exists, or files rotate, the name gets the time of the begin.
        labels: class names by id.
        image: "jpeg", "png" (lossless) or "none".
        quality: of JPEG, 1..100.
        policy: selection of frames and limits of files; None records all frames in one file.
        clock: of log times.
    """

    events_only = False
    gauges: frozenset[str] = frozenset()

    def __init__(
        self,
        path: Path,
        *,
        labels: Sequence[str],
        image: str = "jpeg",
        quality: int = 90,
        policy: RecordingPolicy | None = None,
        clock: UnixClock = UNIX_CLOCK,
    ) -> None:
        if image not in FORMATS:
            raise RequestError(f"there is no image format '{image}'", seen=image, fix=nearest(image, FORMATS))
        settings = policy or RecordingPolicy()
        self.wants_pixels = image != "none"
        self._labels = tuple(labels)
        self._image = image
        self._quality = quality
        self._misses = (
            MissWindowBuffer(settings.before_ns, settings.after_ns) if settings.log_on == "miss" else None
        )
        self._timing: list[Entry] = []
        self._clock = clock
        self._log_on = settings.log_on
        self._log = RotatingLog(path, self._metadata, settings.limits)
        self._flusher = Flusher(self._log)

    def _metadata(self) -> Mapping[str, str]:
        """Metadata of a file that begins now."""
        offset_ns = str(self._clock.offset_ns())
        return {"unix_minus_monotonic_ns": offset_ns, "format": "1", "log_on": self._log_on}

    def write(self, message: Published, frame: Frame | None) -> None:
        detections = message.detections
        topic = f"/camera/{detections.camera}"
        capture_ns = detections.t_capture_ns + self._clock.offset_ns()
        stamp = {
            "log_time_ns": capture_ns + message.age_ns,
            "publish_time_ns": capture_ns,
            "sequence": detections.seq,
        }
        entries, self._timing = self._timing, []
        if frame is not None and self.wants_pixels:
            picture = self._image_message(frame.pixels, detections.camera, capture_ns)
            entries.append(json_entry(f"{topic}/image", schemas.COMPRESSED_IMAGE, picture, **stamp))
        annotations = annotations_message(message, self._labels, capture_ns)
        entries.append(json_entry(f"{topic}/annotations", schemas.IMAGE_ANNOTATIONS, annotations, **stamp))
        body = {**message.as_message(self._labels), "dropped_since_last": message.dropped_since_last}
        entries.append(json_entry(f"{topic}/detections", schemas.DETECTIONS, body, **stamp))
        if self._misses is not None:
            entries = self._misses.take(entries, stamp["log_time_ns"], miss=message.late)
        self._flusher.add(entries)

    def write_timing(self, message: Published, times: StageTimes) -> None:
        """Add one message of /avq/timing per published frame: replay repeats the timing from them."""
        detections = message.detections
        row: dict[str, Any] = {
            "camera": detections.camera,
            "seq": detections.seq,
            "t_capture_ns": detections.t_capture_ns,
            **{f"{stage}_ns": ns for stage, ns in times.items()},
            "age_ns": message.age_ns,
            "deadline_ns": message.deadline_ns,
        }
        at_ns = detections.t_capture_ns + self._clock.offset_ns()
        self._timing.append(
            json_entry(
                "/avq/timing",
                schemas.TIMING,
                row,
                log_time_ns=at_ns + message.age_ns,
                publish_time_ns=at_ns,
                sequence=detections.seq,
            )
        )

    def write_event(self, event: Mapping[str, Any]) -> None:
        """Record one message of /avq/events; ``event["t_ns"]`` is monotonic."""
        at_ns = int(event["t_ns"]) + self._clock.offset_ns()
        self._flusher.add(
            [json_entry("/avq/events", schemas.EVENT, event, log_time_ns=at_ns, publish_time_ns=at_ns)]
        )
        if event.get("kind") == "clock_stepped" and abs(event.get("step_s", 0.0)) >= NEW_FILE_STEP_S:
            self._flusher.next_file()

    def report(self) -> Mapping[str, int]:
        """Return the files created and deleted, and the messages lost because the disk was full."""
        return {"files": self._log.files, "deleted": self._log.deleted, "lost": self._log.lost}

    def close(self) -> None:
        self._flusher.close()

    def _image_message(self, pixels: U8, camera: str, capture_ns: int) -> dict[str, Any]:
        settings = [cv2.IMWRITE_JPEG_QUALITY, self._quality] if self._image == "jpeg" else []
        suffix = ".jpg" if self._image == "jpeg" else ".png"
        _, encoded = cv2.imencode(suffix, pixels, settings)
        return image_message(encoded.tobytes(), self._image, camera, capture_ns)


def _time(unix_ns: int) -> dict[str, int]:
    seconds, nanoseconds = divmod(unix_ns, 1_000_000_000)
    return {"sec": seconds, "nsec": nanoseconds}


def image_message(encoded: bytes, form: str, camera: str, unix_ns: int) -> dict[str, Any]:
    """Build a foxglove.CompressedImage of an encoded image; ``form`` is "jpeg" or "png"."""
    return {"timestamp": _time(unix_ns), "frame_id": camera, "data": encoded, "format": form}


_LINE_LOOP = 2


def annotations_message(message: Published, labels: Sequence[str], unix_ns: int) -> dict[str, Any]:
    """Build foxglove.ImageAnnotations: one closed line and one text per box, one colour per class."""
    stamp = _time(unix_ns)
    detections = message.detections
    rows = zip(
        np.round(detections.boxes_xyxy_px.astype(np.float64), 2).tolist(),
        detections.scores.tolist(),
        detections.class_ids.tolist(),
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
    """Return the RGBA colour of a class, 0 to 1: hues in golden-angle steps."""
    hue = int(class_id * 137.508) % 180
    hsv = np.array([[[hue, 190, 235]]], np.uint8)
    b, g, r = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0].tolist()
    return {"r": r / 255, "g": g / 255, "b": b / 255, "a": 1.0}
