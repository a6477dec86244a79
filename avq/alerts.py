"""The state machine: published frames and events in, alerts out. No clock, no I/O; replay runs the same code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from typing import Any, Literal, get_args

import numpy as np

from avq.errors import DataError
from avq.types import F64, AnyArray, Published

# Polygons in the picture, in shares of its width and height: they hold for every resolution of the
# camera.

Anchor = Literal["bottom", "center"]
_EDGE = 1e-6


@dataclass(frozen=True)
class Zone:
    """Where a detection counts.

    Attributes:
        corners: (x, y) of at least three corners, 0..1 from the left and from the top.
        anchor: the point of a box that must lie inside: "bottom", the middle of its lower edge, where an object
            stands on the road, or "center".
    """

    corners: tuple[tuple[float, float], ...]
    anchor: Anchor = "bottom"

    def holds(self, boxes_xyxy_px: AnyArray, picture_size_px: tuple[int, int]) -> AnyArray:
        """(N,) bool: which boxes (N, 4) have their anchor inside; by the even-odd rule."""
        boxes = boxes_xyxy_px.astype(np.float64)
        x = (boxes[:, 0] + boxes[:, 2]) / 2 / picture_size_px[0]
        y = boxes[:, 3] if self.anchor == "bottom" else (boxes[:, 1] + boxes[:, 3]) / 2
        return _inside(_in_picture(x), _in_picture(y / picture_size_px[1]), np.array(self.corners))


def _in_picture(share: F64) -> F64:
    """A box that leaves the picture, or ends on its border, is still in a zone that ends there."""
    return np.clip(share, _EDGE, 1 - _EDGE)


def _inside(x: F64, y: F64, corners: F64) -> AnyArray:
    """Whether a ray to the right crosses the polygon an odd number of times."""
    x0, y0 = corners.T
    x1, y1 = np.roll(corners, -1, axis=0).T
    crosses = (y0 > y[:, None]) != (y1 > y[:, None])
    rise = np.where(y1 == y0, 1.0, y1 - y0)  # a level edge crosses no ray
    at = x0 + (y[:, None] - y0) * (x1 - x0) / rise
    odd: AnyArray = (crosses & (x[:, None] < at)).sum(axis=1) % 2 == 1
    return odd


# What an alert asks for, and what it says when it is raised.

#: object: something is seen. budget_miss: a frame was late. camera_dead: a camera delivers nothing more.
#: drift: the scene is unlike the calibration pictures.
Condition = Literal["object", "budget_miss", "camera_dead", "drift"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)


@dataclass(frozen=True, slots=True)
class Rule:
    """One ``[[alerts]]`` table.

    Attributes:
        name: unique; part of every id.
        condition: what is watched for.
        classes: class names; any of them counts.
        min_score: of a detection, 0..1.
        zone: where in the picture; None for anywhere.
        cameras: ids; empty for all.
        hits, frames: raised when at least ``hits`` of a camera's last ``frames`` published frames showed it.
        cooldown_ns: silence of this rule and camera after an alert.
    """

    name: str
    condition: Condition = "object"
    classes: frozenset[str] = frozenset()
    min_score: float = 0.0
    zone: Zone | None = None
    cameras: frozenset[str] = frozenset()
    hits: int = 1
    frames: int = 1
    cooldown_ns: int = 0

    def concerns(self, camera: str) -> bool:
        return not self.cameras or camera in self.cameras


@dataclass(frozen=True, slots=True)
class Alert:
    """One raised alert.

    Attributes:
        id: the same whenever the same rule is raised for the same camera within the same cooldown period.
        rule, condition, camera: what was raised, for whom.
        t_ns: monotonic time of the capture (or event) that raised it; unix_ns: the same as Unix time.
        reason: in words.
        seq: of the frame, -1 where an event raised it.
        label, score, box_xyxy_px: the best detection that counted; "" where an event raised it.
    """

    id: str
    rule: str
    condition: Condition
    camera: str
    t_ns: int
    unix_ns: int
    reason: str
    seq: int = -1
    label: str = ""
    score: float = 0.0
    box_xyxy_px: tuple[float, ...] = ()
    vehicle: str = ""

    def as_event(self) -> dict[str, Any]:
        """The event sinks and uplinks receive; its ``kind`` is "alert"."""
        seen: dict[str, Any] = {}
        if self.seq >= 0:
            seen["seq"] = self.seq
        if self.label:
            seen |= {"label": self.label, "score": self.score, "box_xyxy_px": list(self.box_xyxy_px)}
        at = datetime.fromtimestamp(self.unix_ns / 1e9, timezone.utc)
        return {
            "kind": "alert",
            "t_ns": self.t_ns,
            "id": self.id,
            "alert": self.rule,
            "condition": self.condition,
            "vehicle": self.vehicle,
            "camera": self.camera,
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            **seen,
            "reason": self.reason,
        }


#: Kinds of event that raise an alert -> condition.
EVENTS: Mapping[str, Condition] = {
    "camera_dead": "camera_dead",
    "camera_failed": "camera_dead",
    "drift_raised": "drift",
}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one rule has come for one camera.

    Attributes:
        window: the last frames as bits, newest lowest; 1 is a hit.
        raised_ns: when it was raised last; None before.
    """

    window: int = 0
    raised_ns: int | None = None

    def hits(self) -> int:
        return bin(self.window).count("1")


def advance(rule: Rule, state: Progress, hit: bool, t_ns: int) -> tuple[Progress, bool]:
    """One more frame: the new state, and whether the alert is raised now."""
    seen = replace(state, window=((state.window << 1) | hit) & ((1 << rule.frames) - 1))
    silent = state.raised_ns is not None and t_ns - state.raised_ns < rule.cooldown_ns
    raised = hit and not silent and seen.hits() >= rule.hits
    return (replace(seen, raised_ns=t_ns) if raised else seen), raised


def alert_id(vehicle: str, rule: Rule, camera: str, unix_ns: int) -> str:
    """24 hexadecimal digits out of who, what and when; "when" is counted in cooldown periods.

    Two alerts of one run are a cooldown apart, so their ids differ; what a restarted process raises again within the
    same period has the same id, and receivers can tell that they know it.
    """
    period = unix_ns // max(rule.cooldown_ns, 1)
    words = "\n".join((vehicle, rule.name, camera, str(period)))
    return hashlib.blake2s(words.encode(), digest_size=12).hexdigest()


class AlertWatch:
    """All rules over all cameras.

    Args:
        rules: with unique names.
        labels: class names by id.
        unix_minus_monotonic_ns: the offset from capture times to Unix time.
        vehicle: stands in every alert and its id.
    """

    def __init__(
        self, rules: Sequence[Rule], labels: Sequence[str], *, unix_minus_monotonic_ns: int, vehicle: str = ""
    ) -> None:
        self._labels = tuple(labels)
        self._offset_ns = unix_minus_monotonic_ns
        self._vehicle = vehicle
        self._on_frames = [rule for rule in rules if rule.condition in ("object", "budget_miss")]
        self._on_events = [rule for rule in rules if rule not in self._on_frames]
        self._class_ids = {rule.name: self._ids(rule) for rule in self._on_frames}
        self._progress: dict[tuple[str, str], Progress] = {}

    def _ids(self, rule: Rule) -> list[int]:
        return [index for index, name in enumerate(self._labels) if name in rule.classes]

    def on_frame(self, message: Published) -> list[Alert]:
        """Alerts that this published frame raises, in the order of the rules."""
        camera = message.detections.camera
        return [
            alert for rule in self._on_frames if rule.concerns(camera) for alert in self._look(rule, message)
        ]

    def on_event(self, event: Mapping[str, Any]) -> list[Alert]:
        """Alerts that this event raises."""
        condition = EVENTS.get(str(event.get("kind")))
        camera, t_ns = str(event.get("camera", "")), int(event.get("t_ns", 0))
        raised: list[Alert] = []
        for rule in self._on_events:
            if rule.condition == condition and (not camera or rule.concerns(camera)):
                reason = str(event.get("reason") or event.get("kind"))
                raised += self._step(rule, camera, True, t_ns, partial(self._alert, reason=reason))
        return raised

    def _look(self, rule: Rule, message: Published) -> list[Alert]:
        seen = message.detections
        if rule.condition == "budget_miss":
            reason = f"published {message.age_ns / 1e6:.0f} ms after capture"
            raise_it = partial(self._alert, reason=reason, seq=seen.seq)
            return self._step(rule, seen.camera, message.late, seen.t_capture_ns, raise_it)
        best = self._best(rule, message)
        raise_it = partial(self._seen, message=message, index=best)
        return self._step(rule, seen.camera, best >= 0, seen.t_capture_ns, raise_it)

    def _step(self, rule: Rule, camera: str, hit: bool, t_ns: int, raise_it: Any) -> list[Alert]:
        key = (rule.name, camera)
        state, raised = advance(rule, self._progress.get(key, Progress()), hit, t_ns)
        self._progress[key] = state
        return [raise_it(rule, camera, t_ns)] if raised else []

    def _best(self, rule: Rule, message: Published) -> int:
        """Index of the best detection that counts, -1 when none does."""
        seen = message.detections
        counts = np.isin(seen.class_ids, self._class_ids[rule.name]) & (seen.scores >= rule.min_score)
        if rule.zone is not None and counts.any():
            if min(message.picture_size_px) < 1:
                raise DataError(
                    f"the zone of alert '{rule.name}' needs the size of the picture",
                    seen=f"{message.picture_size_px} px",
                    fix="whoever publishes must tell picture_size_px",
                )
            counts &= rule.zone.holds(seen.boxes_xyxy_px, message.picture_size_px)
        found = np.flatnonzero(counts)
        return int(found[np.argmax(seen.scores[found])]) if len(found) else -1

    def _seen(self, rule: Rule, camera: str, t_ns: int, *, message: Published, index: int) -> Alert:
        seen = message.detections
        label = self._labels[int(seen.class_ids[index])]
        state = self._progress[(rule.name, camera)]
        where = " in the zone" if rule.zone is not None else ""
        return self._alert(
            rule,
            camera,
            t_ns,
            reason=f"{label}{where} in {state.hits()} of the last {rule.frames} frames",
            seq=seen.seq,
            label=label,
            score=round(float(seen.scores[index]), 5),
            box_xyxy_px=tuple(round(float(value), 3) for value in seen.boxes_xyxy_px[index]),
        )

    def _alert(self, rule: Rule, camera: str, t_ns: int, **found: Any) -> Alert:
        unix_ns = t_ns + self._offset_ns
        name = alert_id(self._vehicle, rule, camera, unix_ns)
        return Alert(name, rule.name, rule.condition, camera, t_ns, unix_ns, vehicle=self._vehicle, **found)


# When what is seen is worth a message from the car: rules, zones and the state machine over published
# frames.

__all__ = [
    "CONDITIONS",
    "Alert",
    "AlertWatch",
    "Condition",
    "Progress",
    "Rule",
    "Zone",
    "advance",
    "alert_id",
]
