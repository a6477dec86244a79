"""Compare the detections of two runs, box by box; an empty comparison is an error."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from avq.errors import DataError
from avq.types import F32, F64, I64, Detections

FrameKey = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Limits within which two boxes are equal; zero requires the same bits.

    Attributes:
        box_px: largest difference of one corner coordinate, picture pixels.
        score: largest difference of the scores.
        min_iou: smallest IoU of two boxes of the same object.
    """

    box_px: float = 0.0
    score: float = 0.0
    min_iou: float = 0.5


class _DifferenceJson(TypedDict):
    frame: int
    camera: str
    field: str
    a: Any
    b: Any


class DifferenceJson(_DifferenceJson, total=False):
    """One difference of ``avq replay --json``; ``a`` and ``b`` are values of ``field``, null where a run has none."""

    note: str


class BoxJson(TypedDict):
    """One box, as a value of a difference."""

    class_id: int
    score: float
    box_xyxy_px: list[float]


@dataclass(frozen=True, slots=True)
class Difference:
    """One field of one frame that differs.

    Attributes:
        frame: sequence number of the frame.
        camera: camera id.
        field: "frame", "box", "box_xyxy_px", "score", "class_id", or another compared field.
        a: JSON value of the first run; None where it has none.
        b: JSON value of the second run; None where it has none.
        note: description of the difference.
    """

    frame: int
    camera: str
    field: str
    a: Any
    b: Any
    note: str = ""

    def as_dict(self) -> DifferenceJson:
        """Return a JSON object with the keys of ``avq replay --json``."""
        row: DifferenceJson = {
            "frame": self.frame,
            "camera": self.camera,
            "field": self.field,
            "a": self.a,
            "b": self.b,
        }
        if self.note:
            row["note"] = self.note
        return row


@dataclass(frozen=True, slots=True)
class Comparison:
    """Result of a comparison: numbers of frames and boxes, and all differences."""

    frames: int
    boxes: int
    differences: tuple[Difference, ...]

    @property
    def identical(self) -> bool:
        return not self.differences


def compare_detections(
    a: Iterable[Detections], b: Iterable[Detections], tolerance: Tolerance | None = None
) -> Comparison:
    """Compare two runs, aligned by camera and sequence number; the order of boxes does not matter.

    Boxes are assigned one to one: same class first, then best IoU, then nearest score. A box without a partner of its
    class may pair with one of another class, which is one "class_id" difference. NaN differs from everything,
    including NaN.

    Args:
        a: detections of the first run, frame by frame.
        b: detections of the second run.
        tolerance: None requires the same bits.

    Raises:
        DataError: neither run has a frame, or one has a frame twice.
    """
    allowed = tolerance or Tolerance()
    left, right = by_frame(a, "first"), by_frame(b, "second")
    keys = sorted(set(left) | set(right))
    if not keys:
        raise DataError(
            "there are no frames to compare", seen="no frames in either run", fix="give at least one frame"
        )
    differences: list[Difference] = []
    for key in keys:
        differences += _frame_differences(key, left.get(key), right.get(key), allowed)
    boxes = sum(len(d) for d in left.values()) + sum(len(d) for d in right.values())
    return Comparison(len(keys), boxes, tuple(differences))


def iou_matrix(a_xyxy: F32, b_xyxy: F32) -> F64:
    """Compute intersection over union of corner boxes.

    Args:
        a_xyxy: (N, 4) float32.
        b_xyxy: (M, 4) float32, in the same unit.

    Returns:
        (N, M) float64; 0 for boxes without area and for NaN.
    """
    a, b = a_xyxy.astype(np.float64)[:, None, :], b_xyxy.astype(np.float64)[None, :, :]
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0.0, None)
    shared = sides.prod(axis=-1)
    union = _area(a) + _area(b) - shared
    result: F64 = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0.0)
    return np.nan_to_num(result)


def assign(a: Detections, b: Detections, min_iou: float) -> list[tuple[int, int]]:
    """Pair the boxes of two frames one to one: same class first, then best IoU, then nearest score.

    Boxes with equal corners pair even without area, and before those whose IoU only rounds to 1.

    Args:
        a: detections of the first run.
        b: detections of the second run.
        min_iou: smallest IoU of a pair.

    Returns:
        (index in a, index in b), each index at most once.
    """
    iou = iou_matrix(a.boxes_xyxy_px, b.boxes_xyxy_px)
    equal = (a.boxes_xyxy_px[:, None, :] == b.boxes_xyxy_px[None, :, :]).all(axis=-1)
    iou[equal] = 1.0
    rows, columns = np.nonzero(iou >= min_iou)
    other_class = a.class_ids[rows] != b.class_ids[columns]
    apart = np.nan_to_num(np.abs(a.scores[rows] - b.scores[columns]), nan=np.inf)
    best_first = np.lexsort((apart, -iou[rows, columns], ~equal[rows, columns], other_class))
    return one_to_one(rows[best_first], columns[best_first])


def one_to_one(rows: I64, columns: I64) -> list[tuple[int, int]]:
    """Keep the pairs (row, column) whose row and column no earlier pair has; ``rows`` and ``columns`` are (N,)."""
    pairs: list[tuple[int, int]] = []
    taken_rows: set[int] = set()
    taken_columns: set[int] = set()
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        if row not in taken_rows and column not in taken_columns:
            taken_rows.add(row)
            taken_columns.add(column)
            pairs.append((row, column))
    return pairs


def _area(boxes: F64) -> F64:
    area: F64 = np.clip(boxes[..., 2:] - boxes[..., :2], 0.0, None).prod(axis=-1)
    return area


def by_frame(run: Iterable[Detections], which: str) -> dict[FrameKey, Detections]:
    """Return a run by camera and sequence number, in its order. Raises DataError for a repeated frame."""
    table: dict[FrameKey, Detections] = {}
    for detections in run:
        key = (detections.camera, detections.seq)
        if key in table:
            raise DataError(
                f"the {which} run has a frame twice",
                seen=f"camera '{key[0]}', frame {key[1]}",
                fix="compare one run at a time",
            )
        table[key] = detections
    return table


def _frame_differences(
    key: FrameKey, a: Detections | None, b: Detections | None, allowed: Tolerance
) -> list[Difference]:
    camera, frame = key
    if a is None or b is None:
        in_a, in_b = (None if d is None else f"{len(d)} boxes" for d in (a, b))
        return [Difference(frame, camera, "frame", in_a, in_b, "the frame is in one run only")]
    pairs = assign(a, b, allowed.min_iou)
    differences = [
        Difference(frame, camera, *d) for i, j in pairs for d in _box_differences(a, i, b, j, allowed)
    ]
    lone_a = sorted(set(range(len(a))) - {i for i, _ in pairs})
    lone_b = sorted(set(range(len(b))) - {j for _, j in pairs})
    differences += [Difference(frame, camera, "box", box_json(a, i), None) for i in lone_a]
    return differences + [Difference(frame, camera, "box", None, box_json(b, j)) for j in lone_b]


def _box_differences(
    a: Detections, i: int, b: Detections, j: int, allowed: Tolerance
) -> list[tuple[str, Any, Any, str]]:
    differences: list[tuple[str, Any, Any, str]] = []
    corners_a, corners_b = a.boxes_xyxy_px[i].tolist(), b.boxes_xyxy_px[j].tolist()
    apart_px = _largest(abs(x - y) for x, y in zip(corners_a, corners_b, strict=True))
    if not apart_px <= allowed.box_px:
        differences.append(("box_xyxy_px", corners_a, corners_b, f"{apart_px:.4g} px apart"))
    score_a, score_b = float(a.scores[i]), float(b.scores[j])
    if not abs(score_a - score_b) <= allowed.score:
        differences.append(("score", score_a, score_b, f"of the box {_rounded(corners_a)}"))
    class_a, class_b = int(a.class_ids[i]), int(b.class_ids[j])
    if class_a != class_b:
        differences.append(("class_id", class_a, class_b, f"of the box {_rounded(corners_a)}"))
    return differences


def _largest(values: Iterable[float]) -> float:
    """Return the maximum; NaN when any value is NaN (max() would depend on the order)."""
    return float(np.max(np.fromiter(values, np.float64)))


def _rounded(corners: list[float]) -> list[float]:
    return [round(v, 1) for v in corners]


def box_json(d: Detections, index: int) -> BoxJson:
    """Return one box as JSON values."""
    return {
        "class_id": int(d.class_ids[index]),
        "score": float(d.scores[index]),
        "box_xyxy_px": d.boxes_xyxy_px[index].tolist(),
    }
