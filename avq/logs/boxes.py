"""Where people and vehicles are in the pictures of a log: as it recorded them, or as a bundle finds them now."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec

from avq.bundle import open_bundle
from avq.engines.cpu import instruction_set
from avq.errors import RequestError, nearest
from avq.logs.blur import Blur, Box
from avq.logs.reading import Log, open_log
from avq.measure.detector import Detector, detector_of
from avq.plugins import PluginHost
from avq.recording import Record
from avq.types import U8

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
