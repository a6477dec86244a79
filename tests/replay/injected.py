"""Fifty ways in which a replay can go wrong, each with the frame and the fields that must be named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from avq.daemon.inbox import FrameCounts
from avq.replay.result import Answer, ReplayResult
from avq.types import Detections

#: The frame most changes are made in.
AT = 4


@dataclass(frozen=True)
class Injected:
    """One change.

    Attributes:
        name: for people.
        change: the whole result with the change in it.
        fields: at least one difference must name one of these; empty: any field.
        frames: at least one difference must be in one of these frames; empty: any frame.
        bits_only: a change that the toleranced tier is right to tolerate.
    """

    name: str
    change: Callable[[ReplayResult], ReplayResult]
    fields: tuple[str, ...]
    frames: tuple[int, ...] = (AT,)
    bits_only: bool = False


def arrays(
    edit: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[Any, Any, Any]], *, everywhere: bool = False
) -> Callable[[ReplayResult], ReplayResult]:
    """Boxes, scores and class ids of one frame (or all) put through ``edit``."""

    def change(result: ReplayResult) -> ReplayResult:
        return answers(result, lambda index, a: _with(a, edit) if everywhere or index == AT else a)

    return change


def _with(answer: Answer, edit: Callable[..., tuple[Any, Any, Any]]) -> Answer:
    seen = answer.detections
    boxes, scores, ids = edit(seen.boxes_xyxy_px.copy(), seen.scores.copy(), seen.class_ids.copy())
    new = Detections(
        np.asarray(boxes, np.float32), np.asarray(scores, np.float32), np.asarray(ids, np.int64),
        seen.camera, seen.seq, seen.t_capture_ns,
    )  # fmt: skip
    return replace(answer, published=replace(answer.published, detections=new))


def answers(result: ReplayResult, edit: Callable[[int, Answer], Answer | None]) -> ReplayResult:
    kept = (edit(index, answer) for index, answer in enumerate(result.answers))
    return replace(result, answers=tuple(answer for answer in kept if answer is not None))


def published(**changes: Any) -> Callable[[ReplayResult], ReplayResult]:
    """Fields of the message of one frame."""
    return lambda result: answers(
        result,
        lambda index, a: replace(a, published=replace(a.published, **changes)) if index == AT else a,
    )


def renumbered(seq: Callable[[int], int], camera: Callable[[str], str] = lambda name: name) -> Any:
    def edit(index: int, answer: Answer) -> Answer:
        seen = answer.detections
        moved = replace(seen, seq=seq(seen.seq), camera=camera(seen.camera))
        return replace(answer, published=replace(answer.published, detections=moved))

    return lambda result: answers(result, edit)


def swapped(result: ReplayResult) -> ReplayResult:
    """Two neighbours published in the other order."""
    order = list(result.answers)
    order[AT], order[AT + 1] = order[AT + 1], order[AT]
    return replace(result, answers=tuple(order))


def stale(result: ReplayResult) -> ReplayResult:
    """The boxes of the frame before, once more: an output buffer that nobody filled."""
    before = result.answers[AT - 1].detections
    return arrays(lambda b, s, c: (before.boxes_xyxy_px, before.scores, before.class_ids))(result)


def pixel(column: int, by: float) -> Callable[..., Any]:
    def edit(b: np.ndarray, s: np.ndarray, c: np.ndarray) -> Any:
        b[0, column] += by
        return b, s, c

    return edit


def score(new: Callable[[Any], Any]) -> Callable[..., Any]:
    def edit(b: np.ndarray, s: np.ndarray, c: np.ndarray) -> Any:
        s[0] = new(s[0])
        return b, s, c

    return edit


def box_value(index: tuple[int, ...], value: float) -> Callable[..., Any]:
    def edit(b: np.ndarray, s: np.ndarray, c: np.ndarray) -> Any:
        b[index] = value
        return b, s, c

    return edit


def picked(rows: Sequence[int] | slice) -> Callable[..., Any]:
    return lambda b, s, c: (b[rows], s[rows], c[rows])


def ghost(b: np.ndarray, s: np.ndarray, c: np.ndarray) -> Any:
    return np.vstack([b, [[1, 1, 9, 9]]]), np.append(s, 0.4), np.append(c, 1)


def doubled(b: np.ndarray, s: np.ndarray, c: np.ndarray) -> Any:
    return np.vstack([b, b[:1]]), np.append(s, s[:1]), np.append(c, c[:1])


def reclassed(b: np.ndarray, s: np.ndarray, c: np.ndarray) -> Any:
    c[0] = 1 - c[0]
    return b, s, c


def classes_exchanged(b: np.ndarray, s: np.ndarray, c: np.ndarray) -> Any:
    return b, s, 1 - c


def scaled(factor: float) -> Callable[..., Any]:
    return lambda b, s, c: (b * factor, s, c)


def halved(result: ReplayResult) -> ReplayResult:
    return answers(result, lambda index, a: a if index % 2 == 0 else None)


def shifted(dx: float, dy: float) -> Callable[..., Any]:
    return lambda b, s, c: (np.add(b, [dx, dy, dx, dy]), s, c)


def mirrored(b: np.ndarray, s: np.ndarray, c: np.ndarray) -> Any:
    return np.stack([640 - b[:, 2], b[:, 1], 640 - b[:, 0], b[:, 3]], 1), s, c


def as_sizes(b: np.ndarray, s: np.ndarray, c: np.ndarray) -> Any:
    return np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], 1), s, c


def last_bit(b: np.ndarray, s: np.ndarray, c: np.ndarray) -> Any:
    return np.nextafter(b, np.float32(1e9)), s, c


def captured_later(result: ReplayResult) -> ReplayResult:
    seen = result.answers[AT].detections
    return published(detections=replace(seen, t_capture_ns=seen.t_capture_ns + 1_000_000))(result)


def older(result: ReplayResult) -> ReplayResult:
    return published(age_ns=result.answers[AT].published.age_ns + 1)(result)


def alerted(result: ReplayResult) -> ReplayResult:
    event = {"kind": "alert_raised", "t_ns": 1, "camera": "camera", "seq": AT, "mode": "normal"}
    return replace(result, events=(event,))


def miscounted(result: ReplayResult) -> ReplayResult:
    books = result.account
    return replace(result, account=FrameCounts(books.captured + 1, books.published, {"superseded": 1}, 0))


ALL = {"everywhere": True}
BOX, SCORE, CLASS, LONE, FRAME = (
    ("box_xyxy_px", "box"),
    ("score", "box"),
    ("class_id", "box"),
    ("box",),
    ("frame",),
)

CHANGES: tuple[Injected, ...] = (
    Injected("one corner one pixel right", arrays(pixel(0, 1.0)), BOX),
    Injected("one corner one pixel up", arrays(pixel(1, -1.0)), BOX),
    Injected("the far corner one pixel out", arrays(pixel(2, 1.0)), BOX),
    Injected("all boxes one pixel down", arrays(shifted(0, 1)), BOX),
    Injected("all boxes of all frames one pixel right", arrays(shifted(1, 0), **ALL), BOX, ()),
    Injected("one corner by the last bit", arrays(last_bit), BOX, bits_only=True),
    Injected("scale x1.05", arrays(scaled(1.05)), BOX),
    Injected("scale x0.95 everywhere", arrays(scaled(0.95), **ALL), BOX, ()),
    Injected("boxes as whole pixels everywhere", arrays(lambda b, s, c: (np.floor(b), s, c), **ALL), BOX, ()),
    Injected("boxes through float16", arrays(lambda b, s, c: (b.astype(np.float16), s, c)), BOX, bits_only=True),
    Injected("x and y exchanged", arrays(lambda b, s, c: (b[:, [1, 0, 3, 2]], s, c)), BOX),
    Injected("mirrored", arrays(mirrored), BOX),
    Injected("corners exchanged", arrays(lambda b, s, c: (b[:, [2, 3, 0, 1]], s, c)), BOX),
    Injected("letterbox offset forgotten", arrays(shifted(0, 140), **ALL), BOX, ()),
    Injected("centre format taken for corners", arrays(as_sizes), BOX),
    Injected("NaN corner", arrays(box_value((0, 2), np.nan)), BOX),
    Injected("NaN box", arrays(box_value((0,), np.nan)), BOX),
    Injected("infinite corner", arrays(box_value((0, 2), np.inf)), BOX),
    Injected("score -0.02", arrays(score(lambda v: v - 0.02)), SCORE),
    Injected("score +0.02", arrays(score(lambda v: v + 0.02)), SCORE),
    Injected("all scores -0.02 everywhere", arrays(lambda b, s, c: (b, s - 0.02, c), **ALL), SCORE, ()),
    Injected("scores x0.95 everywhere", arrays(lambda b, s, c: (b, s * 0.95, c), **ALL), SCORE, ()),
    Injected("score by the last bit", arrays(score(lambda v: np.nextafter(v, np.float32(0)))), SCORE, bits_only=True),
    Injected("NaN score", arrays(score(lambda v: np.nan)), SCORE),
    Injected("all scores NaN", arrays(lambda b, s, c: (b, s * np.nan, c)), SCORE),
    Injected("score zero", arrays(score(lambda v: 0.0)), SCORE),
    Injected("class swap", arrays(reclassed), CLASS),
    Injected("all classes exchanged", arrays(classes_exchanged, **ALL), CLASS, ()),
    Injected("class off by one", arrays(lambda b, s, c: (b, s, c + 1)), CLASS),
    Injected("best box gone", arrays(picked(slice(1, None))), LONE),
    Injected("weakest box gone", arrays(picked(slice(0, -1))), LONE),
    Injected("ghost box", arrays(ghost), LONE),
    Injected("NMS skipped: a box twice", arrays(doubled), LONE),
    Injected("no boxes in one frame", arrays(picked(slice(0, 0))), LONE),
    Injected("no boxes anywhere", arrays(picked(slice(0, 0)), **ALL), LONE, ()),
    Injected("only the best box everywhere", arrays(picked(slice(0, 1)), **ALL), LONE, ()),
    Injected("boxes in reverse order", arrays(picked(slice(None, None, -1))), ("order",), bits_only=True),
    Injected("boxes of the frame before", stale, (*BOX, "score")),
    Injected("lost frame", lambda r: answers(r, lambda i, a: None if i == AT else a), FRAME),
    Injected("first frame lost", lambda r: answers(r, lambda i, a: None if i == 0 else a), FRAME, (0,)),
    Injected("last frames lost", lambda r: answers(r, lambda i, a: a if i < 6 else None), FRAME, (6, 7)),
    Injected("every second frame lost", halved, FRAME, (1, 3, 5, 7)),
    Injected("frames counted from one", renumbered(lambda seq: seq + 1), FRAME, (0, 8)),
    Injected("camera renamed", renumbered(lambda seq: seq, lambda name: "other"), (), ()),
    Injected("two frames reordered", swapped, ("order",), (AT, AT + 1)),
    Injected("capture time one millisecond off", captured_later, ("t_capture_ns",)),
    Injected("one nanosecond older", older, ("age_ns",)),
    Injected("called late", published(late=True), ("late",)),
    Injected("served in another mode", published(mode="half"), ("mode",)),
    Injected("a drop not told", published(dropped_since_last=3), ("dropped_since_last",)),
    Injected("an alert more", alerted, ("event",)),
    Injected("a frame missing in the books", miscounted, ("dropped",), ()),
)  # fmt: skip
