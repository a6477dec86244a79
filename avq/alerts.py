"""Alert rules as a state machine: published frames and events in, alerts out. No clock, no I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from typing import Any, Literal, cast, get_args

import numpy as np

from avq.errors import DataError
from avq.types import F64, AnyArray, Published
from avq.types.frame import AlertEvent

Anchor = Literal["bottom", "center"]
_EDGE = 1e-6


@dataclass(frozen=True)
class Zone:
    """A polygon in shares of width and height of the picture, so that it fits every resolution.

    Attributes:
        corners: (x, y) of at least three corners, 0..1 from left and top.
        anchor: the point of a box that must lie inside: "bottom", the middle of its lower edge, where an object
            touches the ground, or "center".
    """

    corners: tuple[tuple[float, float], ...]
    anchor: Anchor = "bottom"

    def holds(self, boxes_xyxy_px: AnyArray, picture_size_px: tuple[int, int]) -> AnyArray:
        """Return (N,) bool: which boxes (N, 4) in pixels have their anchor inside, by the even-odd rule."""
        boxes = boxes_xyxy_px.astype(np.float64)
        x = (boxes[:, 0] + boxes[:, 2]) / 2 / picture_size_px[0]
        y = boxes[:, 3] if self.anchor == "bottom" else (boxes[:, 1] + boxes[:, 3]) / 2
        return _inside(_in_picture(x), _in_picture(y / picture_size_px[1]), np.array(self.corners))


def _in_picture(share: F64) -> F64:
    """Clip to the picture, so that a box on its border is in a zone that ends there."""
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


#: object: an object is detected. budget_miss: a frame was late. camera_dead: a camera delivers no more frames.
#: drift: the scene differs from the calibration pictures.
Condition = Literal["object", "budget_miss", "camera_dead", "drift"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)


@dataclass(frozen=True, slots=True)
class Rule:
    """One ``[[alerts]]`` table.

    Attributes:
        name: unique; part of every id.
        condition: that raises it.
        classes: class names; any of them counts.
        min_score: of a detection, 0..1.
        zone: part of the picture; None for all of it.
        cameras: ids; empty for all.
        hits, frames: raised when at least ``hits`` of a camera's last ``frames`` published frames showed it.
        cooldown_ns: shortest time between two alerts of this rule and camera.
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
        id: equal for alerts of one rule and camera within one cooldown period.
        rule, condition, camera: name and condition of the rule, and the camera id.
        t_ns: monotonic time of the capture (or event) that raised it; unix_ns: the same as Unix time.
        reason: one line of text.
        seq: of the frame, -1 where an event raised it.
        label, score, box_xyxy_px: the best matching detection; "" where an event raised it.
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

    def as_event(self) -> AlertEvent:
        """Return the event of kind "alert" that sinks receive."""
        detection: dict[str, Any] = {}
        if self.seq >= 0:
            detection["seq"] = self.seq
        if self.label:
            detection |= {"label": self.label, "score": self.score, "box_xyxy_px": list(self.box_xyxy_px)}
        at = datetime.fromtimestamp(self.unix_ns / 1e9, timezone.utc)
        event = {
            "kind": "alert",
            "t_ns": self.t_ns,
            "id": self.id,
            "alert": self.rule,
            "condition": self.condition,
            "vehicle": self.vehicle,
            "camera": self.camera,
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            **detection,
            "reason": self.reason,
        }
        return cast("AlertEvent", event)


#: Kinds of event that raise an alert -> condition.
EVENTS: Mapping[str, Condition] = {
    "camera_dead": "camera_dead",
    "camera_failed": "camera_dead",
    "drift_raised": "drift",
}


@dataclass(frozen=True, slots=True)
class Progress:
    """State of one rule for one camera.

    Attributes:
        window: the last frames as bits, newest lowest; 1 is a hit.
        raised_ns: time of the last alert; None before the first.
    """

    window: int = 0
    raised_ns: int | None = None

    def hits(self) -> int:
        return bin(self.window).count("1")


def advance(rule: Rule, state: Progress, hit: bool, t_ns: int) -> tuple[Progress, bool]:
    """Add one frame; return the new state, and whether the alert is raised now."""
    after = replace(state, window=((state.window << 1) | hit) & ((1 << rule.frames) - 1))
    silent = state.raised_ns is not None and t_ns - state.raised_ns < rule.cooldown_ns
    raised = hit and not silent and after.hits() >= rule.hits
    return (replace(after, raised_ns=t_ns) if raised else after), raised


def alert_id(vehicle: str, rule: Rule, camera: str, unix_ns: int) -> str:
    """Hash vehicle, rule, camera and cooldown period into 24 hexadecimal digits.

    Alerts of one run are a cooldown apart, so their ids differ. A restarted process that raises an alert again within
    the same period gives it the same id, so receivers can drop the duplicate.
    """
    period = unix_ns // max(rule.cooldown_ns, 1)
    words = "\n".join((vehicle, rule.name, camera, str(period)))
    return hashlib.blake2s(words.encode(), digest_size=12).hexdigest()


class AlertWatch:
    """All rules over all cameras.

    Args:
        rules: with unique names.
        labels: class names by id.
        offset_ns: returns the offset from capture times to Unix time, which changes when the clock is set.
        vehicle: part of every alert and its id.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        labels: Sequence[str],
        *,
        offset_ns: Callable[[], int],
        vehicle: str = "",
    ) -> None:
        self._labels = tuple(labels)
        self._offset_ns = offset_ns
        self._vehicle = vehicle
        self._on_frames = [rule for rule in rules if rule.condition in ("object", "budget_miss")]
        self._on_events = [rule for rule in rules if rule not in self._on_frames]
        self._class_ids = {rule.name: self._ids(rule) for rule in self._on_frames}
        self._progress: dict[tuple[str, str], Progress] = {}

    def _ids(self, rule: Rule) -> list[int]:
        return [index for index, name in enumerate(self._labels) if name in rule.classes]

    def on_frame(self, message: Published) -> list[Alert]:
        """Return the alerts that a published frame raises, in the order of the rules."""
        camera = message.detections.camera
        return [
            alert
            for rule in self._on_frames
            if rule.concerns(camera)
            for alert in self._on_message(rule, message)
        ]

    def on_event(self, event: Mapping[str, Any]) -> list[Alert]:
        """Return the alerts that an event raises."""
        condition = EVENTS.get(str(event.get("kind")))
        camera, t_ns = str(event.get("camera", "")), int(event.get("t_ns", 0))
        raised: list[Alert] = []
        for rule in self._on_events:
            if rule.condition == condition and (not camera or rule.concerns(camera)):
                reason = str(event.get("reason") or event.get("kind"))
                raised += self._step(rule, camera, True, t_ns, partial(self._alert, reason=reason))
        return raised

    def _on_message(self, rule: Rule, message: Published) -> list[Alert]:
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
        """Return the index of the best matching detection, -1 when none matches."""
        seen = message.detections
        counts = np.isin(seen.class_ids, self._class_ids[rule.name]) & (seen.scores >= rule.min_score)
        if rule.zone is not None and counts.any():
            if min(message.picture_size_px) < 1:
                raise DataError(
                    f"the zone of alert '{rule.name}' needs the size of the picture",
                    seen=f"{message.picture_size_px} px",
                    fix="set picture_size_px on every Published",
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
        unix_ns = t_ns + self._offset_ns()
        name = alert_id(self._vehicle, rule, camera, unix_ns)
        return Alert(name, rule.name, rule.condition, camera, t_ns, unix_ns, vehicle=self._vehicle, **found)


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
