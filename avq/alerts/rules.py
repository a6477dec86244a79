"""What an alert asks for, and what it says when it is raised."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal, get_args

from avq.alerts.zone import Zone

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
