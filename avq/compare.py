"""What differs between two runs: boxes by assignment, tensors by tolerance; comparing nothing fails."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from avq.errors import DataError
from avq.types import F32, F64, I64, AnyArray, Detections

FrameKey = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far two boxes may be apart and still count as equal; zero asks for the same bits.

    Attributes:
        box_px: largest difference of one corner coordinate, picture pixels.
        score: largest difference of the scores.
        min_iou: overlap from which two boxes are taken for the same object.
    """

    box_px: float = 0.0
    score: float = 0.0
    min_iou: float = 0.5


@dataclass(frozen=True, slots=True)
class Difference:
    """One field of one frame that differs.

    Attributes:
        frame: sequence number of the frame in its camera.
        field: "frame", "box", "box_xyxy_px", "score", "class_id", or the name of a tensor.
        a, b: JSON values of the two runs; None where one has nothing.
        note: how much, for people.
    """

    frame: int
    camera: str
    field: str
    a: Any
    b: Any
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON object with the keys of ``avq replay --json``."""
        keys = ("frame", "camera", "field", "a", "b", "note")
        return {key: getattr(self, key) for key in keys if key != "note" or self.note}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Frames and boxes that were compared, and all that differed."""

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

    Boxes are assigned one to one: same class first, then best overlap, then nearest score. A box that found
    no partner of its class may pair with one of another class: that is one "class_id" difference. NaN differs
    from everything, itself included.

    Raises DataError when neither run has a frame, or one has a frame twice.
    """
    allowed = tolerance or Tolerance()
    left, right = by_frame(a, "first"), by_frame(b, "second")
    keys = sorted(set(left) | set(right))
    if not keys:
        raise DataError(
            "there is nothing to compare", seen="no frames in either run", fix="give at least one"
        )
    found: list[Difference] = []
    for key in keys:
        found += _frame_differences(key, left.get(key), right.get(key), allowed)
    boxes = sum(len(d) for d in left.values()) + sum(len(d) for d in right.values())
    return Comparison(len(keys), boxes, tuple(found))


def compare_tensors(
    a: Mapping[str, AnyArray],
    b: Mapping[str, AnyArray],
    *,
    atol: float = 0.0,
    rtol: float = 0.0,
    frame: int = 0,
    camera: str = "",
) -> tuple[Difference, ...]:
    """Tensors of the same name that differ by more than ``atol + rtol * |b|`` anywhere.

    One Difference per tensor: its field names the worst element, ``note`` says how many differ. A missing
    tensor, another shape and NaN are differences.

    Raises DataError when there is no element to compare.
    """
    if not any(np.size(array) for array in (*a.values(), *b.values())):
        raise DataError("there is nothing to compare", seen="no tensor elements", fix="give at least one")
    found: list[Difference] = []
    for name in sorted(set(a) | set(b)):
        worst = _tensor_difference(name, a.get(name), b.get(name), atol, rtol)
        if worst is not None:
            found.append(Difference(frame, camera, *worst))
    return tuple(found)


def iou_matrix(a_xyxy: F32, b_xyxy: F32) -> F64:
    """(N, 4) and (M, 4) corner boxes -> (N, M) intersection over union; 0 for boxes without area or NaN."""
    a, b = a_xyxy.astype(np.float64)[:, None, :], b_xyxy.astype(np.float64)[None, :, :]
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0.0, None)
    shared = sides.prod(axis=-1)
    union = _area(a) + _area(b) - shared
    result: F64 = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0.0)
    return np.nan_to_num(result)


def assign(a: Detections, b: Detections, min_iou: float) -> list[tuple[int, int]]:
    """Pairs (index in a, index in b), each index at most once: same class first, best overlap first.

    Ties go to the nearer score. Boxes with exactly equal corners pair even without area, and before those
    whose overlap only rounds to 1.
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
    """The pairs (row, column) in their order, without those whose row or column an earlier one has taken."""
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
    """A run keyed by camera and sequence number, in its order. Raises DataError for a frame that is there twice."""
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
    found = [Difference(frame, camera, *d) for i, j in pairs for d in _box_differences(a, i, b, j, allowed)]
    lone_a = sorted(set(range(len(a))) - {i for i, _ in pairs})
    lone_b = sorted(set(range(len(b))) - {j for _, j in pairs})
    found += [Difference(frame, camera, "box", box_json(a, i), None) for i in lone_a]
    return found + [Difference(frame, camera, "box", None, box_json(b, j)) for j in lone_b]


def _box_differences(
    a: Detections, i: int, b: Detections, j: int, allowed: Tolerance
) -> list[tuple[str, Any, Any, str]]:
    found: list[tuple[str, Any, Any, str]] = []
    corners_a, corners_b = a.boxes_xyxy_px[i].tolist(), b.boxes_xyxy_px[j].tolist()
    apart_px = _largest(abs(x - y) for x, y in zip(corners_a, corners_b, strict=True))
    if not apart_px <= allowed.box_px:
        found.append(("box_xyxy_px", corners_a, corners_b, f"{apart_px:.4g} px apart"))
    score_a, score_b = float(a.scores[i]), float(b.scores[j])
    if not abs(score_a - score_b) <= allowed.score:
        found.append(("score", score_a, score_b, f"of the box {_rounded(corners_a)}"))
    class_a, class_b = int(a.class_ids[i]), int(b.class_ids[j])
    if class_a != class_b:
        found.append(("class_id", class_a, class_b, f"of the box {_rounded(corners_a)}"))
    return found


def _largest(values: Iterable[float]) -> float:
    """The maximum; NaN when any value is NaN (max() would depend on the order)."""
    return float(np.max(np.fromiter(values, np.float64)))


def _rounded(corners: list[float]) -> list[float]:
    return [round(v, 1) for v in corners]


def box_json(d: Detections, index: int) -> dict[str, Any]:
    """One box as JSON values."""
    return {
        "class_id": int(d.class_ids[index]),
        "score": float(d.scores[index]),
        "box_xyxy_px": d.boxes_xyxy_px[index].tolist(),
    }


def _tensor_difference(
    name: str, a: AnyArray | None, b: AnyArray | None, atol: float, rtol: float
) -> tuple[str, Any, Any, str] | None:
    if a is None or b is None or a.shape != b.shape:
        in_a, in_b = (None if array is None else list(array.shape) for array in (a, b))
        return name, in_a, in_b, "missing" if a is None or b is None else "another shape"
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        apart = np.where(wide_a == wide_b, 0.0, np.abs(wide_a - wide_b))  # inf equals inf
        size = np.where(np.isfinite(wide_b), np.abs(wide_b), 0.0)  # infinity forgives nothing
        differs = ~(apart <= atol + rtol * size)
    if not differs.any():
        return None
    ranked = np.where(differs, np.nan_to_num(apart, nan=np.inf, posinf=np.inf), -1.0)
    worst = tuple(int(i) for i in np.unravel_index(int(np.argmax(ranked)), a.shape))
    note = f"{int(differs.sum())} of {differs.size} values differ, worst by {apart[worst]:.4g}"
    return f"{name}[{','.join(map(str, worst))}]", wide_a[worst].item(), wide_b[worst].item(), note
