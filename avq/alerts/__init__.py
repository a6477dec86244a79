"""When what is seen is worth a message from the car: rules, zones and the state machine over published frames."""

from __future__ import annotations

from avq.alerts.rules import CONDITIONS, Alert, Condition, Rule
from avq.alerts.watch import AlertWatch, Progress, advance, alert_id
from avq.alerts.zone import Zone

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
