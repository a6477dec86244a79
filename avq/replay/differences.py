"""Every field of every frame in which two replays differ, by the tier that applies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from avq.compare import Difference, compare_detections
from avq.compare import Tolerance as BoxTolerance
from avq.replay.frames import FrameKey
from avq.replay.matching import FramePair
from avq.replay.result import Answer, ReplayResult
from avq.replay.tolerance import Tier, Tolerances

_DECIDED = ("t_capture_ns", "age_ns", "late", "mode", "dropped_since_last")


def box_differences(pairs: Sequence[FramePair], tier: Tier, allowed: Tolerances) -> list[Difference]:
    """Frames, boxes, scores and classes; in the exact tier the order of boxes too."""
    limit = BoxTolerance() if tier == "exact" else BoxTolerance(allowed.box_px, allowed.score)
    left = [pair.a for pair in pairs if pair.a is not None]
    right = [pair.b for pair in pairs if pair.b is not None]
    found = list(compare_detections(left, right, limit).differences)
    if tier == "exact":
        named = {(d.camera, d.frame) for d in found}
        found += [d for pair in pairs if pair.key not in named for d in _order(pair)]
    return found


def _order(pair: FramePair) -> Iterator[Difference]:
    """The same boxes in another order: no difference to the road, but the bits are others."""
    moved = [(m.a, m.b) for m in pair.matches if m.a != m.b]
    if moved:
        camera, frame = pair.key
        a, b = moved[0]
        yield Difference(frame, camera, "order", a, b, "the same boxes in another order")


def decision_differences(reference: ReplayResult, result: ReplayResult) -> list[Difference]:
    """What the loop decided otherwise: lateness, modes, drops, events, and the order of frames."""
    before, after = ({answer.key: answer for answer in run.answers} for run in (reference, result))
    found: list[Difference] = []
    for key in (key for key in before if key in after):
        found += _decided(key, before[key], after[key])
    found += _publication_order(reference, result)
    found += _events(reference.events, result.events, found_at=_first(result))
    if not found and reference.account != result.account:
        camera, frame = _first(result)
        found.append(
            Difference(
                frame,
                camera,
                "dropped",
                reference.account.dropped,
                result.account.dropped,
                "over the whole log",
            )
        )
    return found


def _decided(key: FrameKey, before: Answer, after: Answer) -> Iterator[Difference]:
    for field in _DECIDED:
        holder_a, holder_b = (
            answer.detections if field == "t_capture_ns" else answer.published for answer in (before, after)
        )
        a, b = getattr(holder_a, field), getattr(holder_b, field)
        if a != b:
            yield Difference(key[1], key[0], field, a, b)


def _publication_order(reference: ReplayResult, result: ReplayResult) -> list[Difference]:
    in_both = {a.key for a in reference.answers} & {a.key for a in result.answers}
    one, two = ([a.key for a in run.answers if a.key in in_both] for run in (reference, result))
    for a, b in zip(one, two, strict=True):
        if a != b:
            return [
                Difference(b[1], b[0], "order", list(a), list(b), "frames were published in another order")
            ]
    return []


def _events(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], found_at: FrameKey
) -> list[Difference]:
    for index in range(max(len(before), len(after))):
        a = dict(before[index]) if index < len(before) else None
        b = dict(after[index]) if index < len(after) else None
        if a != b:
            told: Mapping[str, Any] = b or a or {}
            camera, frame = str(told.get("camera", found_at[0])), int(told.get("seq", found_at[1]))
            return [
                Difference(frame, camera, "event", a, b, f"event {index} of {len(before)} and {len(after)}")
            ]
    return []


def new_events(reference: ReplayResult, result: ReplayResult) -> list[Difference]:
    """Alerts and mode changes that the other bundle causes and the reference did not."""
    left = Counter(_kind(event) for event in reference.events)
    found = []
    for event in result.events:
        if left[_kind(event)] > 0:
            left[_kind(event)] -= 1
            continue
        camera, frame = str(event.get("camera", "")), int(event.get("seq", 0))
        found.append(Difference(frame, camera, "event", None, dict(event), "only with this bundle"))
    return found


def _kind(event: Mapping[str, Any]) -> tuple[str, str]:
    return str(event.get("kind")), str(event.get("mode"))


def _first(result: ReplayResult) -> FrameKey:
    return result.answers[0].key if result.answers else ("", 0)
