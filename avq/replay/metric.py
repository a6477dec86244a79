"""Losses between two bundles per class and size: lost and new boxes, precision, recall, AP, confidence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np

from avq.compare import Difference, box_json
from avq.errors import DataError, MachineError
from avq.measure.accuracy import Boxes, as_boxes, average_precision
from avq.measure.fidelity import FIRM_SCORE, MIN_SCORE_SHARE, TRUTH_SCORE
from avq.replay.differences import FramePair, Match, Tolerances, size_of
from avq.types import Detections

SIZES = ("small", "medium", "large")
ALL = "all"


#: The name of a class, or "all"; a key of this name needs the functional form.
_ClassKey = TypedDict("_ClassKey", {"class": str})


class LossRow(_ClassKey):
    """Losses of one class and size; ``recall``, ``precision`` and ``ap`` are null without boxes."""

    size: str
    boxes: int
    lost: int
    appeared: int
    recall: float | None
    precision: float | None
    ap: float | None
    confidence_shift: float


@dataclass
class Cell:
    """Counts of one class and size (or all of them).

    Attributes:
        boxes: confident boxes of the reference.
        lost: boxes of the reference that the new run does not recover.
        found: confident boxes of the new run.
        appeared: boxes of the new run that the reference does not have.
        shifts: new minus old score of the recovered boxes.
        ap: AP50-95 of the new run with the reference's boxes as ground truth; None where it was not computed.
    """

    boxes: int = 0
    lost: int = 0
    found: int = 0
    appeared: int = 0
    shifts: list[float] = field(default_factory=list)
    ap: float | None = None

    @property
    def recall(self) -> float | None:
        return 1.0 - self.lost / self.boxes if self.boxes else None

    @property
    def precision(self) -> float | None:
        return 1.0 - self.appeared / self.found if self.found else None

    @property
    def confidence_shift(self) -> float:
        return float(np.mean(self.shifts)) if self.shifts else 0.0

    def row(self, name: str, size: str) -> LossRow:
        return {
            "class": name,
            "size": size,
            "boxes": self.boxes,
            "lost": self.lost,
            "appeared": self.appeared,
            "recall": self.recall,
            "precision": self.precision,
            "ap": self.ap,
            "confidence_shift": self.confidence_shift,
        }


@dataclass(frozen=True)
class Metric:
    """Table of losses.

    Attributes:
        cells: (class name or "all", size or "all") -> counts.
        reasons: exceeded limits, in words.
    """

    cells: dict[tuple[str, str], Cell]
    reasons: tuple[str, ...]

    @property
    def total(self) -> Cell:
        return self.cells[ALL, ALL]

    def rows(self) -> list[LossRow]:
        """Return the totals, then sizes, classes, and classes by size; largest losses first within each."""
        return [cell.row(*key) for key, cell in sorted(self.cells.items(), key=_rank)]

    def suffering(self, allowed: Tolerances) -> list[LossRow]:
        """Return classes by size that exceed the limits, largest losses first."""
        rows = [cell.row(*key) for key, cell in sorted(self.cells.items(), key=_rank) if ALL not in key]
        return [row for row in rows if _exceeds(row, allowed)]


def _rank(item: tuple[tuple[str, str], Cell]) -> tuple[int, float, str, str]:
    (name, size), cell = item
    level = (name != ALL) * 2 + (size != ALL)
    return level, -(cell.lost + cell.appeared), name, size


def _exceeds(row: LossRow, allowed: Tolerances) -> bool:
    lost = row["boxes"] and row["lost"] > allowed.max_lost * row["boxes"]
    return bool(lost or row["confidence_shift"] < -allowed.max_confidence_shift)


def measure(pairs: Sequence[FramePair], labels: Sequence[str], allowed: Tolerances) -> Metric:
    """Search the confident boxes (score >= 0.5) of either run in the other; frames in one run only are left out.

    A box is recovered by one of the same class with IoU >= 0.5 and at least half the score.
    """
    cells: dict[tuple[str, str], Cell] = defaultdict(Cell)
    cells[ALL, ALL] = Cell()
    for pair in pairs:
        if pair.a is not None and pair.b is not None:
            _count(pair, pair.a, pair.b, labels, cells)
    for key, ap in _precisions(pairs, labels).items():
        if key in cells:
            cells[key].ap = ap
    return Metric(dict(cells), tuple(_reasons(cells[ALL, ALL], allowed)))


def found_again(match: Match, firm: Detections, index: int, other: Detections, other_index: int) -> bool:
    """Return whether the other run recovers a confident box."""
    share = float(other.scores[other_index]) >= MIN_SCORE_SHARE * float(firm.scores[index])
    return share and not match.class_flip


def _count(
    pair: FramePair, a: Detections, b: Detections, labels: Sequence[str], cells: dict[tuple[str, str], Cell]
) -> None:
    partner_a, partner_b = {m.a: m for m in pair.matches}, {m.b: m for m in pair.matches}
    for i in np.flatnonzero(a.scores >= FIRM_SCORE).tolist():
        match = partner_a.get(i)
        again = match is not None and found_again(match, a, i, b, match.b)
        for cell in _cells(cells, a, i, labels):
            cell.boxes += 1
            cell.lost += not again
            if again and match is not None:
                cell.shifts.append(match.score_shift)
    for j in np.flatnonzero(b.scores >= FIRM_SCORE).tolist():
        match = partner_b.get(j)
        known = match is not None and found_again(match, b, j, a, match.a)
        for cell in _cells(cells, b, j, labels):
            cell.found += 1
            cell.appeared += not known


def _cells(
    cells: dict[tuple[str, str], Cell], detections: Detections, index: int, labels: Sequence[str]
) -> Iterable[Cell]:
    name, size = label_of(labels, int(detections.class_ids[index])), size_of(detections, index)
    return [cells[key] for key in ((ALL, ALL), (ALL, size), (name, ALL), (name, size))]


def label_of(labels: Sequence[str], class_id: int) -> str:
    """Return the name of a class, or "class N" without one."""
    return labels[class_id] if 0 <= class_id < len(labels) else f"class {class_id}"


def _reasons(total: Cell, allowed: Tolerances) -> Iterable[str]:
    if not total.boxes and not total.found:
        yield "no boxes were compared: neither run has a box with score >= 0.5"
    if total.boxes and total.lost > allowed.max_lost * total.boxes:
        yield f"{total.lost} of {total.boxes} boxes are lost (limit {allowed.max_lost:.1%})"
    if total.found and total.appeared > allowed.max_appeared * total.found:
        yield f"{total.appeared} of {total.found} boxes are new (limit {allowed.max_appeared:.1%})"
    if abs(total.confidence_shift) > allowed.max_confidence_shift:
        limit = allowed.max_confidence_shift
        yield f"confidence moved by {total.confidence_shift:+.4f} on average (limit {limit:g})"


def metric_differences(pairs: Sequence[FramePair], allowed: Tolerances) -> list[Difference]:
    """Return changes of confident boxes per frame: lost, new, class flips, and score shifts above the limit."""
    return [d for pair in pairs for d in _frame(pair, allowed)]


def _frame(pair: FramePair, allowed: Tolerances) -> Iterable[Difference]:
    camera, frame = pair.key
    a, b = pair.a, pair.b
    if a is None or b is None:
        return
    for match in pair.matches:
        firm = max(float(a.scores[match.a]), float(b.scores[match.b])) >= FIRM_SCORE
        box = np.round(a.boxes_xyxy_px[match.a].astype(float), 1).tolist()
        if firm and match.class_flip:
            ids = int(a.class_ids[match.a]), int(b.class_ids[match.b])
            yield Difference(frame, camera, "class_id", *ids, f"of the box {box}")
        if firm and not abs(match.score_shift) <= allowed.max_confidence_shift:
            scores = float(a.scores[match.a]), float(b.scores[match.b])
            yield Difference(frame, camera, "score", *scores, f"of the box {box}")
    for i in pair.vanished:
        if float(a.scores[i]) >= FIRM_SCORE:
            yield Difference(frame, camera, "box", box_json(a, i), None, "vanished")
    for j in pair.appeared:
        if float(b.scores[j]) >= FIRM_SCORE:
            yield Difference(frame, camera, "box", None, box_json(b, j), "appeared")


def _precisions(pairs: Sequence[FramePair], labels: Sequence[str]) -> dict[tuple[str, str], float]:
    """Return AP per class, per size and in total; {} without faster-coco-eval or without ground truth."""
    both = [
        (pair, pair.a.above(TRUTH_SCORE), pair.b)
        for pair in pairs
        if pair.a is not None and pair.b is not None
    ]
    truth = [_boxes(a, a.class_ids) for _, a, _ in both]
    detected = [_boxes(b, b.class_ids) for _, _, b in both]
    classes = sorted({int(c) for boxes in truth for c in boxes.categories})
    try:
        by_class = average_precision(truth, detected, classes)
        sized = [(_sizes(a), _sizes_by_partner(pair, b)) for pair, a, b in both]
        by_size = average_precision(
            [_boxes(a, sizes) for (_, a, _), (sizes, _) in zip(both, sized, strict=True)],
            [_boxes(b, sizes) for (_, _, b), (_, sizes) in zip(both, sized, strict=True)],
            range(len(SIZES)),
        )
    except (DataError, MachineError):
        return {}
    table = {(label_of(labels, c), ALL): ap for c, ap in by_class.per_category.items()}
    table.update({(ALL, SIZES[s]): ap for s, ap in by_size.per_category.items()})
    return {**table, (ALL, ALL): by_class.map}


def _boxes(detections: Detections, categories: Any) -> Boxes:
    """Convert detections; boxes that are not finite are left out."""
    finite = np.isfinite(detections.scores) & np.isfinite(detections.boxes_xyxy_px).all(axis=1)
    return as_boxes(detections.boxes_xyxy_px[finite], categories[finite], detections.scores[finite])


def _sizes(detections: Detections) -> Any:
    return np.array([SIZES.index(size_of(detections, i)) for i in range(len(detections))], np.int64)


def _sizes_by_partner(pair: FramePair, b: Detections) -> Any:
    """Return the sizes of the new boxes; a matched box takes that of its partner, which may be across a limit."""
    sizes = _sizes(b)
    for match in pair.matches:
        if pair.a is not None:
            sizes[match.b] = SIZES.index(size_of(pair.a, match.a))
    return sizes
