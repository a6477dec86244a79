"""The state machine: published frames and events in, alerts out. No clock, no I/O; replay runs the same code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from avq.alerts.rules import Alert, Condition, Rule
from avq.errors import DataError
from avq.types import Published

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

    def saw(self, message: Published) -> list[Alert]:
        """Alerts that this published frame raises, in the order of the rules."""
        camera = message.detections.camera
        return [
            alert for rule in self._on_frames if rule.concerns(camera) for alert in self._look(rule, message)
        ]

    def heard(self, event: Mapping[str, Any]) -> list[Alert]:
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
