"""Hold a recognised head to what it does: its boxes on pictures must look like detections.

A structure that fits proves nothing about the meaning of columns. Boxes of a misread head are too many, lie outside
of the picture, have scores above 1, or are not found again in the mirror image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from avq.compare import iou_matrix
from avq.decoders.boxes import HeadFamily
from avq.decoders.detect import check_finite, suppress, to_image_unclipped
from avq.decoders.recognise import find_decoder
from avq.errors import DataError
from avq.hookspecs import Decoder
from avq.preprocess import Preprocessor
from avq.types import F32, I64, U8, AnyArray, DecoderSpec, ModelInput, PreprocessSpec, RawOutputs

#: Boxes from this score on are checked.
SCORE = 0.35
#: Boxes of the mirrored picture from this score on can match: scores near the limit vary.
_MIRROR_SCORE = 0.2
MOST_PICTURES = 16
#: Median number of boxes per picture above which a head is no detector of objects.
MOST_BOXES = 100
#: Fewer boxes than these are no evidence for shares.
FEWEST_BOXES = 8
#: Share of the boxes that must have an area, at least half of it inside the picture.
_INSIDE = 0.99
#: Share of the boxes that the mirrored picture must show again.
_FOUND_AGAIN = 0.5
_IOU = 0.5
_ROUNDING = 1e-3


@dataclass(frozen=True, slots=True)
class Plausibility:
    """Answer of ``check_boxes``.

    Attributes:
        answer: "implausible" where a check failed.
        detail: the numbers, one sentence.
        of_class: whether only the classes differ in the mirror image, as those of left and right do.
    """

    answer: Literal["plausible", "implausible", "cannot tell"]
    detail: str
    of_class: bool = False


@dataclass(frozen=True, slots=True)
class _Boxes:
    """Boxes of one picture in picture pixels, not clipped: (N, 4) xyxy, (N,) scores, (N,) class ids."""

    boxes_xyxy_px: F32
    scores: F32
    class_ids: I64


@dataclass(frozen=True, slots=True)
class _Reader:
    """Decodes outputs without clipping boxes to the picture."""

    run: Callable[[AnyArray], RawOutputs]
    preprocessor: Preprocessor
    spec: DecoderSpec
    family: Decoder

    def infer(self, pixels: U8) -> tuple[RawOutputs, ModelInput]:
        prepared = self.preprocessor.prepare(pixels)
        raw = self.run(prepared.tensor)
        check_finite(raw)
        return raw, prepared

    def contradiction(self, raw: RawOutputs) -> str:
        """Return why the raw outputs cannot have the recognised layout, or ""."""
        return self.family.contradiction(raw, self.spec) if isinstance(self.family, HeadFamily) else ""

    def boxes(self, raw: RawOutputs, prepared: ModelInput, score: float) -> _Boxes:
        boxes, scores, class_ids = self.family.candidates(raw, self.spec, score)
        if not self.family.nms_in_graph:
            valid = np.isfinite(boxes).all(axis=1)
            boxes, scores, class_ids = boxes[valid], scores[valid], class_ids[valid]
            boxes, scores, class_ids = suppress(
                boxes, scores, class_ids, self.spec.iou_threshold, self.spec.max_detections
            )
        mapped = to_image_unclipped(boxes, prepared.model_to_image)
        return _Boxes(mapped.astype(np.float32), scores, class_ids)


def check_boxes(
    run: Callable[[AnyArray], RawOutputs],
    preprocess: PreprocessSpec,
    spec: DecoderSpec,
    pictures: Sequence[U8],
    families: Sequence[Decoder] | None = None,
) -> Plausibility:
    """Decode pictures and their mirror images, and check scores, class ids, boxes and their number.

    Args:
        run: maps the input of the network, (1, 3, h, w) uint8, to raw outputs.
        preprocess: of the network.
        spec: the recognised head.
        pictures: (H, W, 3) uint8 BGR each; the first 16 are used.
        families: known decoders; the built-in ones when None.

    Returns:
        "plausible", "implausible" with the check that failed, or "cannot tell" with fewer than 8 boxes.
    """
    reader = _Reader(run, Preprocessor(preprocess), spec, find_decoder(spec.family, families))
    counts: list[int] = []
    bad = same = other = 0
    for pixels in pictures[:MOST_PICTURES]:
        try:
            raw, prepared = reader.infer(pixels)
            found = reader.boxes(raw, prepared, SCORE)
            wrong = reader.contradiction(raw) or _out_of_range(found, spec.num_classes)
            if wrong:
                return Plausibility("implausible", wrong)
            mirrored = reader.boxes(*reader.infer(np.ascontiguousarray(pixels[:, ::-1])), _MIRROR_SCORE)
        except DataError as error:
            return Plausibility("implausible", f"{error.what} ({error.seen})")
        size_px = (pixels.shape[1], pixels.shape[0])
        counts.append(len(found.scores))
        bad += len(found.scores) - int(_inside(found.boxes_xyxy_px, size_px).sum())
        with_class, without = _found_again(found, mirrored, size_px[0])
        same, other = same + with_class, other + without - with_class
    return _judge(counts, bad, same, other)


def _judge(counts: Sequence[int], bad: int, same: int, other: int) -> Plausibility:
    total = sum(counts)
    where = f"{total} boxes with score >= {SCORE} in {len(counts)} pictures"
    if total and bad == total:
        return Plausibility("implausible", f"{where}, all without area or mostly outside of the picture")
    if total < FEWEST_BOXES:
        return Plausibility("cannot tell", where)
    median, failed = float(np.median(counts)), ""
    if median > MOST_BOXES:
        failed = f"median {median:g} per picture (limit {MOST_BOXES})"
    elif bad > max(1.0, (1 - _INSIDE) * total):
        failed = f"{bad} without area or mostly outside of the picture (limit 1 %)"
    if failed:
        return Plausibility("implausible", f"{where}, {failed}")
    text = f"{where}, {same / total:.0%} found again in the mirror image"
    if same >= _FOUND_AGAIN * total:
        return Plausibility("plausible", text)
    if same + other >= _FOUND_AGAIN * total:
        return Plausibility("implausible", f"{text}, {other / total:.0%} with another class", of_class=True)
    return Plausibility("implausible", f"{text} (limit {_FOUND_AGAIN:.0%})")


def _out_of_range(found: _Boxes, classes: int) -> str:
    scores, ids = found.scores, found.class_ids
    if len(scores) and not (float(scores.max()) <= 1 + _ROUNDING):
        return f"a score of {float(scores.max()):g}, above 1"
    if len(ids) and (int(ids.min()) < 0 or (classes and int(ids.max()) >= classes)):
        wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        return f"the class id {wrong}, of {classes} classes" if classes else f"the class id {wrong}"
    return ""


def _inside(boxes: F32, size_px: tuple[int, int]) -> AnyArray:
    """Return which boxes have an area, at least half of it inside the picture."""
    width, height = size_px
    clipped = np.clip(boxes, 0, [width, height, width, height])
    with np.errstate(invalid="ignore", over="ignore"):
        sides, visible = boxes[:, 2:] - boxes[:, :2], clipped[:, 2:] - clipped[:, :2]
        area = sides.prod(axis=1)
        good: AnyArray = (sides > 0).all(axis=1) & (visible.prod(axis=1) >= 0.5 * area)
    return good


def _found_again(found: _Boxes, mirrored: _Boxes, width_px: int) -> tuple[int, int]:
    """Return how many boxes overlap a box of the mirrored picture: one of the same class, one of any class."""
    limits = [width_px, 0, width_px, 0]
    back = (mirrored.boxes_xyxy_px[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + limits).astype(np.float32)
    overlap = iou_matrix(found.boxes_xyxy_px, back) >= _IOU
    of_class = overlap & (found.class_ids[:, None] == mirrored.class_ids[None])
    return int(of_class.any(axis=1).sum()), int(overlap.any(axis=1).sum())
