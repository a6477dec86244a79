"""Frames, network inputs, detections and published messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict, overload

import numpy as np

from avq.errors import DataError
from avq.types.arrays import F32, F64, I64, U8, AnyArray, ArrayRecord

#: Output name -> array. Engine-owned: valid until the next ``infer`` of the same session.
RawOutputs = Mapping[str, AnyArray]


@dataclass(frozen=True, slots=True, eq=False)
class Frame(ArrayRecord):
    """One picture of one camera.

    Attributes:
        camera: the camera's id in the config.
        seq: frame number of the camera, from 0, dropped frames included.
        t_capture_ns: capture time, host monotonic clock, nanoseconds.
        pixels: (H, W, 3) uint8, BGR; a read-only view, which may borrow the memory of a capture slot.

    Raises:
        DataError: ``pixels`` is not (H, W, 3) uint8.
    """

    camera: str
    seq: int
    t_capture_ns: int
    pixels: U8

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or self.pixels.shape[2] != 3 or self.pixels.dtype != np.uint8:
            raise DataError(
                f"frame {self.seq} of camera '{self.camera}' is not a BGR picture",
                seen=f"shape {self.pixels.shape}, dtype {self.pixels.dtype}",
                fix="a source must yield (H, W, 3) uint8 BGR arrays",
            )
        self._freeze("pixels")


@dataclass(frozen=True, slots=True, eq=False)
class ModelInput(ArrayRecord):
    """Network input of one picture, with the map back to picture pixels.

    Attributes:
        tensor: (1, 3, h, w) uint8, channel order of the preprocessing spec; read-only, and borrowed until the
            preprocessor prepares the next picture unless it was copied.
        model_to_image: (2, 3) float64 read-only affine map from network-input pixels to picture pixels.
        image_size_px: (width, height) of the picture.
    """

    tensor: U8
    model_to_image: F64
    image_size_px: tuple[int, int]

    def __post_init__(self) -> None:
        self._freeze("tensor", "model_to_image")


class Detection(NamedTuple):
    """One box of a frame, in plain Python numbers.

    Attributes:
        box_xyxy_px: x0, y0, x1, y1 in picture pixels.
        score: 0..1.
        class_id: index into the model's class names.
    """

    box_xyxy_px: tuple[float, float, float, float]
    score: float
    class_id: int


@dataclass(frozen=True, slots=True, eq=False)
class Detections(ArrayRecord):
    """Boxes of one frame, best score first.

    Attributes:
        boxes_xyxy_px: (N, 4) float32, picture pixels, x0 y0 x1 y1.
        scores: (N,) float32 in 0..1.
        class_ids: (N,) int64, index into the model's class names.
        camera: id of the camera.
        seq: frame number of the camera.
        t_capture_ns: capture time, host monotonic clock, nanoseconds.

    Arrays are read-only views. ``detections[2:5]``, ``detections[mask]`` and ``detections[indices]`` select boxes,
    ``detections[i]`` and iteration give one Detection each.

    Raises:
        DataError: the arrays differ in length.
    """

    boxes_xyxy_px: F32
    scores: F32
    class_ids: I64
    camera: str = ""
    seq: int = 0
    t_capture_ns: int = 0

    def __post_init__(self) -> None:
        count = len(self.scores)
        shapes = (self.boxes_xyxy_px.shape, self.scores.shape, self.class_ids.shape)
        if shapes != ((count, 4), (count,), (count,)):
            raise DataError(
                "detections do not line up",
                seen=f"boxes {shapes[0]}, scores {shapes[1]}, class_ids {shapes[2]}",
                fix="a decoder must return (N, 4), (N,) and (N,)",
            )
        self._freeze("boxes_xyxy_px", "scores", "class_ids")

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        rows = zip(self.boxes_xyxy_px.tolist(), self.scores.tolist(), self.class_ids.tolist(), strict=True)
        return (Detection((x0, y0, x1, y1), score, class_id) for (x0, y0, x1, y1), score, class_id in rows)

    @overload
    def __getitem__(self, key: int | np.integer[Any]) -> Detection: ...

    @overload
    def __getitem__(self, key: slice | Sequence[int] | Sequence[bool] | AnyArray) -> Detections: ...

    def __getitem__(
        self, key: int | np.integer[Any] | slice | Sequence[int] | Sequence[bool] | AnyArray
    ) -> Detection | Detections:
        """Select boxes, as numpy selects rows.

        Args:
            key: an int for one box; a slice, a (N,) bool mask or (M,) int indices for some.

        Returns:
            A Detection for an int, else the Detections selected, of the same frame.

        Raises:
            IndexError: an index out of range, or a mask whose length is not N.
        """
        if isinstance(key, (int, np.integer)):
            x0, y0, x1, y1 = self.boxes_xyxy_px[key].tolist()
            return Detection((x0, y0, x1, y1), float(self.scores[key]), int(self.class_ids[key]))
        rows = key if isinstance(key, slice) else _row_index(key)
        return Detections(
            self.boxes_xyxy_px[rows],
            self.scores[rows],
            self.class_ids[rows],
            self.camera,
            self.seq,
            self.t_capture_ns,
        )

    @property
    def is_empty(self) -> bool:
        """True when the frame has no box."""
        return len(self.scores) == 0

    @classmethod
    def none(cls, camera: str = "", seq: int = 0, t_capture_ns: int = 0) -> Detections:
        """Return an empty result for a frame."""
        return cls(
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.float32),
            np.zeros(0, np.int64),
            camera,
            seq,
            t_capture_ns,
        )

    def above(self, score: float) -> Detections:
        """Return the boxes whose score is at least ``score`` (0..1)."""
        return self[self.scores >= score]


def _row_index(key: Sequence[int] | Sequence[bool] | AnyArray) -> AnyArray:
    rows = np.asarray(key)
    is_empty_list = rows.shape == (0,) and rows.dtype.kind == "f"  # numpy reads [] as float
    return rows.astype(np.intp) if is_empty_list else rows


# Deadlines, stage times and what is published.


@dataclass(frozen=True, slots=True)
class LatencyBudget:
    """Limit on the age of a frame, and on the share of late ones.

    Attributes:
        deadline_ns: allowed time from capture to publish.
        window_frames: frames over which the miss ratio is computed.
        max_miss_ratio: tolerated share of late frames in the window, 0..1.
    """

    deadline_ns: int
    window_frames: int = 30
    max_miss_ratio: float = 0.1


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Time per stage of one frame, in nanoseconds of one clock.

    Attributes:
        queue_ns: from capture to the start of preprocessing.
        preprocess_ns: resize, pad and split.
        infer_ns: inference.
        decode_ns: decoding and NMS.
    """

    queue_ns: int
    preprocess_ns: int
    infer_ns: int
    decode_ns: int

    def items(self) -> list[tuple[str, int]]:
        """Return (stage, nanoseconds) in processing order."""
        return [
            ("queue", self.queue_ns),
            ("preprocess", self.preprocess_ns),
            ("infer", self.infer_ns),
            ("decode", self.decode_ns),
        ]


class DetectionJson(TypedDict):
    """One box of a JSON line; corners x0, y0, x1, y1 in picture pixels."""

    label: str
    score: float
    box_xyxy_px: list[float]


class MessageJson(TypedDict):
    """One line of ``avq run --json`` and of the JSON-lines sink; ``bundle`` is the digest of the bundle."""

    camera: str
    seq: int
    t_capture_ns: int
    age_ms: float
    late: bool
    mode: str
    bundle: str
    detections: list[DetectionJson]


@dataclass(frozen=True, slots=True)
class Published:
    """Detections of one frame as sinks receive them.

    Attributes:
        detections: boxes of the frame, with its camera, sequence number and capture time.
        age_ns: nanoseconds from capture to publication.
        dropped_since_last: frames of this camera dropped since its previous message.
        late: ``age_ns`` exceeds the deadline.
        mode: name of the mode that processed the frame.
        bundle_digest: digest of the bundle that processed the frame.
        picture_size_px: (width, height) of the frame; (0, 0) when unknown.
        deadline_ns: largest age that is not late, in nanoseconds; 0 when unknown.
    """

    detections: Detections
    age_ns: int
    dropped_since_last: int
    late: bool
    mode: str
    bundle_digest: str
    picture_size_px: tuple[int, int] = (0, 0)
    deadline_ns: int = 0

    def as_message(self, labels: Sequence[str]) -> MessageJson:
        """Return the JSON object that sinks write; its keys are part of the command contract.

        Args:
            labels: class names by class id; ids beyond them are written as numbers.

        Returns:
            A dict of JSON values: ages in milliseconds, boxes in picture pixels to 0.001, scores to 0.00001.
        """
        detections = self.detections
        boxes = np.round(detections.boxes_xyxy_px.astype(np.float64), 3).tolist()
        scores = np.round(detections.scores.astype(np.float64), 5).tolist()
        names = (labels[i] if i < len(labels) else str(i) for i in detections.class_ids.tolist())
        return {
            "camera": detections.camera,
            "seq": detections.seq,
            "t_capture_ns": detections.t_capture_ns,
            "age_ms": round(self.age_ns / 1e6, 3),
            "late": self.late,
            "mode": self.mode,
            "bundle": self.bundle_digest,
            "detections": [
                {"label": name, "score": score, "box_xyxy_px": box}
                for name, score, box in zip(names, scores, boxes, strict=True)
            ],
        }


class Event(TypedDict):
    """Something that happened in a run, as sinks, logs and the page receive it.

    Further keys depend on the kind; the classes below name them.

    Attributes:
        kind: such as "camera_stalled" or "mode_changed".
        t_ns: monotonic time in nanoseconds, as of captures.
        reason: one line of text.
    """

    kind: str
    t_ns: int
    reason: str


class _CameraEvent(Event):
    camera: str
    cause: str


class CameraEvent(_CameraEvent, total=False):
    """A change of one camera: stalled, restarted, resumed, dead, unsteady, failed, or a remark of its source.

    "camera_unsteady" has ``counts``: kind -> events that were counted instead of reported.
    """

    counts: dict[str, int]


#: The mode, or the digest of the bundle, before an event; a key of this name needs the functional form.
Before = TypedDict("Before", {"from": str}, total=False)


class TransitionEvent(Event, Before):
    """A decision of the governor: another mode, or an alert raised or cleared."""

    camera: str
    seq: int
    mode: str
    alert: bool


class SwappedBundles(Before, total=False):
    """Digests of the bundles before and after a swap, or the path of a refused one."""

    bundle: str
    path: str


class SwapEvent(Event, SwappedBundles):
    """Another bundle was installed, rolled back or refused."""


class MemoryEvent(Event):
    """Steady growth of one process, in MB (2**20 bytes)."""

    process: str
    resident_mb: float
    mb_per_hour: float


class ClockEvent(Event):
    """Unix time stepped against monotonic time: the clock was set, or the machine was suspended."""

    step_s: float
    suspended_s: float


class AlertEvent(Event, total=False):
    """A raised alert (kind "alert"); the keys from ``seq`` on are those of the detection that raised it."""

    id: str
    alert: str
    condition: str
    vehicle: str
    camera: str
    time: str
    seq: int
    label: str
    score: float
    box_xyxy_px: list[float]
