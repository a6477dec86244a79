"""The alert rules as a sink: messages and events in, alert events for the other sinks out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from avq.alerts import Alert, AlertWatch, Rule, Zone
from avq.config import AlertConfig
from avq.types import Frame, Published


def rule_of(config: AlertConfig) -> Rule:
    """Convert one ``[[alerts]]`` table into a rule."""
    counted = config.kind in ("object", "budget_miss")
    frames = config.frames if counted else 1
    return Rule(
        name=config.name,
        condition=config.kind,
        classes=frozenset(config.classes or ()),
        min_score=config.min_score,
        zone=Zone(config.zone, config.anchor) if config.zone is not None else None,
        cameras=frozenset(config.cameras or ()),
        hits=config.hits or min(3, frames),
        frames=frames,
        cooldown_ns=round(config.cooldown_s * 1e9),
    )


class AlertSink:
    """Feeds an alert watch and publishes its alerts as events of kind "alert".

    Args:
        watch: used on the thread of this sink only.
    """

    wants_pixels = False
    events_only = False

    def __init__(self, watch: AlertWatch) -> None:
        self._watch = watch
        self._emit: Callable[[Mapping[str, Any]], None] = lambda event: None

    def connect(self, emit: Callable[[Mapping[str, Any]], None]) -> None:
        """Set the receiver of alerts; called once, before the first message."""
        self._emit = emit

    def write(self, message: Published, frame: Frame | None) -> None:
        self._raise(self._watch.on_frame(message))

    def write_event(self, event: Mapping[str, Any]) -> None:
        self._raise(self._watch.on_event(event))

    def _raise(self, alerts: list[Alert]) -> None:
        for alert in alerts:
            self._emit(alert.as_event())

    def close(self) -> None:
        """Nothing to free."""
