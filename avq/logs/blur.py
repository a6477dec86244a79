"""Blur people and vehicles in the images of a log, by recorded boxes or by a bundle's detector.

Undetected objects are not blurred. Other data that may show the scene (videos, images that cannot be decoded or have
no boxes, attachments) is left out of the output.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import cv2
import msgspec
import numpy as np

from avq.bundle import open_bundle
from avq.engines.cpu import instruction_set
from avq.errors import RequestError, nearest
from avq.logs.reading import Log, open_log
from avq.measure.detector import Detector, detector_of
from avq.plugins import PluginHost
from avq.recording import Record
from avq.recording.images import decode_image, is_image, replace_pixels
from avq.types import U8

_MARGIN = 0.1
_MARGIN_PX = 2

_IMAGE_SCHEMA = re.compile(
    r"image|video|picture|theora|compressed|depth|camera(?!info)|pointcloud", re.IGNORECASE
)

Box = Sequence[float]
#: Returns (label, box) of the objects in one image; None without information about this image.
FindBoxes = Callable[[Record, U8], "Sequence[tuple[str, Box]] | None"]


class BlurSummary(TypedDict):
    """Key ``blur`` of the answers of ``avq log``; ``left_out`` is topic -> reason -> messages."""

    pictures: int
    boxes: dict[str, int]
    classes: list[str]
    left_out: dict[str, dict[str, int]]
    limits: list[str]


@dataclass
class Blur:
    """Blur the image of a record; a call returns the record to write, or None to leave it out.

    Args:
        finders: sources of boxes; the boxes of all that know an image are used.
        classes: labels to hide.
    """

    finders: Sequence[FindBoxes]
    classes: frozenset[str]

    def __post_init__(self) -> None:
        self.pictures = 0
        self.boxes: Counter[str] = Counter()
        self.left_out: dict[str, Counter[str]] = {}

    def __call__(self, record: Record) -> Record | None:
        if is_image(record):
            return self._blurred(record)
        reason = _unblurrable(record)
        if reason:
            self._leave_out(record, reason)
        return None if reason else record

    def _blurred(self, record: Record) -> Record | None:
        try:
            pixels = decode_image(record).copy()
        except ValueError:
            self._leave_out(record, "an image that cannot be decoded")
            return None
        known = [boxes for find in self.finders if (boxes := find(record, pixels)) is not None]
        if not known:
            self._leave_out(record, "an image without boxes in the log")
            return None
        self.pictures += 1
        hide = [(label, box) for boxes in known for label, box in boxes if label in self.classes]
        for label, box in hide:
            hide_box(pixels, box)
            self.boxes[label] += 1
        return replace(record, data=replace_pixels(record, pixels)) if hide else record

    def _leave_out(self, record: Record, reason: str) -> None:
        self.left_out.setdefault(record.topic, Counter())[reason] += 1

    def summary(self) -> BlurSummary:
        """Return counts of blurred and omitted messages, and the limits of the method."""
        return {
            "pictures": self.pictures,
            "boxes": dict(sorted(self.boxes.items())),
            "classes": sorted(self.classes),
            "left_out": {topic: dict(reasons) for topic, reasons in sorted(self.left_out.items())},
            "limits": [
                "undetected objects are not blurred: check the images before you share them",
                "a box hides its object and a tenth around it; shadows and reflections stay",
                "attachments are left out; positions, times and other messages stay unchanged",
            ],
        }


def _unblurrable(record: Record) -> str:
    """Return why a message other than a supported image may show the scene; "" when it cannot."""
    if not record.schema_name:
        return "no schema describes its content"
    if _IMAGE_SCHEMA.search(record.schema_name) and "ImageAnnotations" not in record.schema_name:
        return f"{record.schema_name} may show the scene and cannot be blurred"
    return ""


def hide_box(pixels: U8, box_xyxy_px: Box) -> None:
    """Reduce a box and a margin around it to at most 6 x 6 mean colours, in place.

    Args:
        pixels: (H, W, 3) uint8; changed in place.
        box_xyxy_px: x0, y0, x1, y1 in pixels; boxes that are not finite are ignored.
    """
    x0, y0, x1, y1 = (float(v) for v in box_xyxy_px)
    if not np.isfinite([x0, y0, x1, y1]).all():
        return
    dx, dy = (x1 - x0) * _MARGIN + _MARGIN_PX, (y1 - y0) * _MARGIN + _MARGIN_PX
    height, width = pixels.shape[:2]
    left, right = (int(np.clip(v, 0, width)) for v in (np.floor(x0 - dx), np.ceil(x1 + dx)))
    top, bottom = (int(np.clip(v, 0, height)) for v in (np.floor(y0 - dy), np.ceil(y1 + dy)))
    if right <= left or bottom <= top:
        return
    region = pixels[top:bottom, left:right]
    cells = (min(6, max(1, (right - left) // 8)), min(6, max(1, (bottom - top) // 8)))
    small = cv2.resize(region, cells, interpolation=cv2.INTER_AREA)
    pixels[top:bottom, left:right] = cv2.resize(small, (right - left, bottom - top))


#: Low: a box blurred by mistake costs nothing.
MIN_SCORE = 0.1

# fmt: off
PEOPLE = frozenset({
    "person", "pedestrian", "people", "rider", "cyclist", "bicyclist", "motorcyclist", "child", "man", "woman",
})
VEHICLES = frozenset({
    "car", "truck", "bus", "van", "motorcycle", "motorbike", "bicycle", "bike", "train", "tram", "trailer", "caravan",
    "vehicle", "scooter", "taxi", "pickup", "lorry", "tractor", "ambulance", "plate",
})
# fmt: on
_CAMERA = re.compile(r"^/camera/(.+)/(image|detections)$")


def hidden_classes(names: Iterable[str], requested: Sequence[str]) -> frozenset[str]:
    """Return the classes of ``names`` to blur: the requested ones, or people and vehicles.

    Raises:
        RequestError: a requested class is not among the names, or none of the names is a person or a vehicle.
    """
    known = sorted(set(names))
    for name in requested:
        if name not in known:
            raise RequestError(f"there is no class '{name}' to blur", seen=name, fix=nearest(name, known))
    chosen = frozenset(requested or (n for n in known if _words(n) & (PEOPLE | VEHICLES)))
    if known and not chosen:
        raise RequestError(
            "no class of the model is a known person or vehicle class",
            seen=", ".join(known[:20]),
            fix="name the classes to blur: --blur-class NAME, once per class",
        )
    return chosen


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z]+", name.lower()))


class RecordedBoxes:
    """Find the boxes that a flight record holds for its own images."""

    def __init__(self, log: Log) -> None:
        self._boxes: dict[tuple[str, int, int], list[tuple[str, Box]]] = {}
        for record in log:
            if record.schema_name == "avq.Detections" and record.message_encoding == "json":
                self._add(record)
        self.labels = {label for boxes in self._boxes.values() for label, _ in boxes}

    def _add(self, record: Record) -> None:
        try:
            rows = msgspec.json.decode(record.data, type=_Line).detections
        except msgspec.MsgspecError:
            return
        self._boxes[_key(record)] = [(row.label, row.box_xyxy_px) for row in rows]

    def __bool__(self) -> bool:
        return bool(self._boxes)

    def __call__(self, record: Record, pixels: U8) -> Sequence[tuple[str, Box]] | None:
        return self._boxes.get(_key(record))


class _Row(msgspec.Struct):
    label: str
    box_xyxy_px: tuple[float, float, float, float]


class _Line(msgspec.Struct):
    detections: list[_Row]


def _key(record: Record) -> tuple[str, int, int]:
    camera = _CAMERA.match(record.topic)
    return (camera[1] if camera else record.topic, record.sequence, record.publish_time_ns)


class DetectedBoxes:
    """Find boxes with a bundle's detector."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self.labels = set(detector.class_names)

    def __call__(self, record: Record, pixels: U8) -> Sequence[tuple[str, Box]]:
        detections = self._detector.detect(pixels, score_threshold=MIN_SCORE)
        names = self._detector.class_names
        return [
            (names[k] if k < len(names) else str(k), box)
            for k, box in zip(detections.class_ids.tolist(), detections.boxes_xyxy_px.tolist(), strict=True)
        ]


@contextmanager
def make_blur(
    path: Path, enabled: bool, bundle: Path | None, classes: Sequence[str], host: PluginHost
) -> Iterator[Blur | None]:
    """Yield the Blur for a log, or None when it is not enabled; closes the bundle's detector at the end.

    Args:
        path: the log.
        enabled: the flag ``--blur``.
        bundle: detects objects in addition to the recorded boxes; None uses the recorded boxes only.
        classes: labels to blur; empty blurs people and vehicles.
        host: engines and decoders.

    Raises:
        RequestError: a bundle or class without --blur, or neither recorded boxes nor a bundle.
        BundleError: the bundle is damaged.
        MachineError: the engine of the bundle is missing.
    """
    if not enabled:
        if bundle is not None or classes:
            raise RequestError(
                "--bundle and --blur-class need --blur", seen="no --blur", fix="add --blur, or remove them"
            )
        yield None
        return
    with closing(open_log(path)) as log:
        recorded = RecordedBoxes(log)
    if bundle is None:
        if not recorded:
            raise RequestError(
                f"the log {path} holds no boxes to blur",
                seen="no avq.Detections messages",
                fix="add --bundle BUNDLE to detect people and vehicles",
            )
        yield Blur([recorded], hidden_classes(recorded.labels, classes))
        return
    opened = open_bundle(bundle, allow_unaccepted=True, isa=instruction_set())
    detector = detector_of(opened, host.running_engines(), families=host.decoders())
    try:
        labels = recorded.labels | set(detector.class_names)
        yield Blur([recorded, DetectedBoxes(detector)], hidden_classes(labels, classes))
    finally:
        detector.close()
