"""Which frames are worth looking at: a ranking by disagreement, spread over time. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from avq.replay.frames import FrameKey

#: What speaks for a frame. "float": the float network against the bundle; "recorded": what served on the road against
#: the bundle; "drift": how far its activations are from the calibration pictures.
SIGNALS = ("float", "recorded", "drift")


@dataclass(frozen=True)
class Frame:
    """One frame of a log and what speaks for it.

    Attributes:
        log: path or URI.
        key: camera and sequence number.
        t_capture_ns: since the first capture of the log.
        signals: by name; larger is stranger, 0 is nothing at all. Unknown ones are missing.
        proposals: (label, score, box x0 y0 x1 y1 in pixels) of the better of the two models.
    """

    log: str
    key: FrameKey
    t_capture_ns: int
    signals: Mapping[str, float]
    proposals: tuple[tuple[str, float, tuple[float, ...]], ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Ranked:
    """A frame with its place: ``score`` is the share of frames that its strongest signal leaves behind."""

    frame: Frame
    score: float
    why: str


def rank(frames: Sequence[Frame]) -> list[Ranked]:
    """Strangest first. Signals have no common unit, so each counts by its rank among all frames.

    A frame without any signal above 0 gets score 0; ties keep the order of the frames.
    """
    shares = {name: _shares([frame.signals.get(name, 0.0) for frame in frames]) for name in SIGNALS}
    ranked = []
    for index, frame in enumerate(frames):
        own = {name: shares[name][index] for name in SIGNALS if name in frame.signals}
        best = max(own, key=lambda name: own[name], default="")
        ranked.append((own.get(best, 0.0), sum(own.values()), Ranked(frame, own.get(best, 0.0), best)))
    return [row for _, _, row in sorted(ranked, key=lambda entry: (-entry[0], -entry[1]))]


def _shares(values: Sequence[float]) -> list[float]:
    """Share of frames with a smaller value; 0 for 0."""
    order = sorted(values)
    below = {value: index for index, value in reversed(list(enumerate(order)))}
    return [(below[value] + 1) / len(values) if value > 0.0 else 0.0 for value in values]


def choose(ranked: Sequence[Ranked], count: int, gap_ns: int) -> list[Ranked]:
    """The first ``count`` that differ from nothing less than ``gap_ns`` apart; closer ones only to fill up.

    Frames without a signal are never chosen.
    """
    speaking = [row for row in ranked if row.score > 0.0]
    chosen: list[Ranked] = []
    for row in speaking:
        if len(chosen) < count and all(_apart(row.frame, other.frame, gap_ns) for other in chosen):
            chosen.append(row)
    taken = {id(row) for row in chosen}
    fill = [row for row in speaking if id(row) not in taken][: count - len(chosen)]
    keep = taken | {id(row) for row in fill}
    return [row for row in speaking if id(row) in keep]


def _apart(a: Frame, b: Frame, gap_ns: int) -> bool:
    other = (a.log, a.key[0]) != (b.log, b.key[0])
    return other or abs(a.t_capture_ns - b.t_capture_ns) >= gap_ns
