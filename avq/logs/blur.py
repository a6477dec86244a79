"""Make people and vehicles unrecognisable in the pictures of a log.

What was not detected is not blurred. Everything else that may show the road (videos, pictures that cannot be decoded
or have no boxes, attachments) is left out of the output instead of being passed on as it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from avq.recording.images import decode_image, is_image, repaint
from avq.types import U8

_MARGIN = 0.1
_MARGIN_PX = 2

_MAY_SHOW = re.compile(
    r"image|video|picture|theora|compressed|depth|camera(?!info)|pointcloud", re.IGNORECASE
)

Box = Sequence[float]
#: The boxes to hide in one picture, with their labels; None: nothing is known about this picture.
FindBoxes = Callable[[Record, U8], "Sequence[tuple[str, Box]] | None"]


@dataclass
class Blur:
    """A record in, the record that may leave the car out, or None.

    Args:
        finders: what knows boxes; all that know a picture are used.
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
        why = _may_show(record)
        if why:
            self._leave_out(record, why)
        return None if why else record

    def _blurred(self, record: Record) -> Record | None:
        try:
            pixels = decode_image(record).copy()
        except ValueError:
            self._leave_out(record, "a picture that cannot be decoded")
            return None
        found = [boxes for find in self.finders if (boxes := find(record, pixels)) is not None]
        if not found:
            self._leave_out(record, "a picture that the log has no boxes for")
            return None
        self.pictures += 1
        hide = [(label, box) for boxes in found for label, box in boxes if label in self.classes]
        for label, box in hide:
            hide_box(pixels, box)
            self.boxes[label] += 1
        return replace(record, data=repaint(record, pixels)) if hide else record

    def _leave_out(self, record: Record, why: str) -> None:
        self.left_out.setdefault(record.topic, Counter())[why] += 1

    def account(self) -> dict[str, Any]:
        """What was done, for the answer of the command."""
        return {
            "pictures": self.pictures,
            "boxes": dict(sorted(self.boxes.items())),
            "classes": sorted(self.classes),
            "left_out": {topic: dict(why) for topic, why in sorted(self.left_out.items())},
            "limits": [
                "what was not detected is not blurred: look at the pictures before you pass them on",
                "a box hides its object and a tenth around it; shadows and reflections stay",
                "attachments are left out; positions, times and other messages stay as they are",
            ],
        }


def _may_show(record: Record) -> str:
    """Why a message that is no picture avq can blur may still show the road; "" when it does not."""
    if not record.schema_name:
        return "no schema says what it holds"
    if _MAY_SHOW.search(record.schema_name) and "ImageAnnotations" not in record.schema_name:
        return f"{record.schema_name} may show the road and cannot be blurred"
    return ""


def hide_box(pixels: U8, box_xyxy_px: Box) -> None:
    """Leave at most 6 x 6 mean colours of the box and a margin around it, in place."""
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


# Where people and vehicles are in the pictures of a log: as it recorded them, or as a bundle finds them
# now.

#: A box that hides somebody by mistake costs nothing, so doubtful ones count too.
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


def hidden_classes(names: Iterable[str], asked: Sequence[str]) -> frozenset[str]:
    """Which of ``names`` are hidden: those asked for, or people and vehicles.

    Raises:
        RequestError: an asked class is not among the names, or none of the names is a person or a vehicle.
    """
    known = sorted(set(names))
    for name in asked:
        if name not in known:
            raise RequestError(f"there is no class '{name}' to blur", seen=name, fix=nearest(name, known))
    chosen = frozenset(asked or (n for n in known if _words(n) & (PEOPLE | VEHICLES)))
    if known and not chosen:
        raise RequestError(
            "none of the classes is known as a person or a vehicle",
            seen=", ".join(known[:20]),
            fix="name what to hide: --blur-class NAME, once for each",
        )
    return chosen


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z]+", name.lower()))


class RecordedBoxes:
    """The boxes that the log itself holds for its pictures (a flight record)."""

    def __init__(self, log: Log) -> None:
        self._boxes: dict[tuple[str, int, int], list[tuple[str, Box]]] = {}
        for record in log:
            if record.schema_name == "avq.Detections" and record.message_encoding == "json":
                self._keep(record)
        self.labels = {label for boxes in self._boxes.values() for label, _ in boxes}

    def _keep(self, record: Record) -> None:
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
    """The boxes that a bundle finds now."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self.labels = set(detector.class_names)

    def __call__(self, record: Record, pixels: U8) -> Sequence[tuple[str, Box]]:
        seen = self._detector.detect(pixels, score_threshold=MIN_SCORE)
        names = self._detector.class_names
        return [
            (names[k] if k < len(names) else str(k), box)
            for k, box in zip(seen.class_ids.tolist(), seen.boxes_xyxy_px.tolist(), strict=True)
        ]


@contextmanager
def prepared_blur(
    path: Path, asked: bool, bundle: Path | None, classes: Sequence[str], host: PluginHost
) -> Iterator[Blur | None]:
    """The Blur for a log, or None when it was not asked for; a bundle's detector is open meanwhile.

    Raises:
        RequestError: a bundle or class without --blur, or nothing tells where people and vehicles are.
        BundleError: the bundle is damaged. MachineError: its engine is missing.
    """
    if not asked:
        if bundle is not None or classes:
            raise RequestError("only a blur needs a bundle or classes", seen="no --blur", fix="add --blur")
        yield None
        return
    with closing(open_log(path)) as log:
        recorded = RecordedBoxes(log)
    if bundle is None:
        if not recorded:
            raise RequestError(
                f"nothing says where people and vehicles are in {path}",
                seen="no recorded boxes",
                fix="--bundle BUNDLE finds them",
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
