"""Drift and shadow on the page's port: as metrics, and whole in the status."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from avq.daemon.observer import RunView
from avq.types import LatencyBudget
from avq.web import LiveState
from avq.web.live_state import ViewerCounts
from avq.web.metrics import exposition
from avq.web.status import MachineReader, StatusJson, StatusReader

ROW = {
    "share": 0.07,
    "occupancy": 0.2,
    "unusual_pictures": 21,
    "pictures": 30,
    "limit": 19,
    "drifting": True,
}
DRIFT = {"available": True, "cameras": {"front": ROW}}


def looked_at(**states: object) -> tuple[dict[str, float], StatusJson]:
    """(metrics without labels' names, status) of a run with these answers."""
    live_state, machine, counts = LiveState(), MachineReader(), ViewerCounts()
    live_state.on_open(RunView(LatencyBudget(1), dict, list, dict, **states))  # type: ignore[arg-type]
    text = exposition(live_state, machine, counts).decode()
    found = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith(("avq_drift", "avq_shadow"))
    }
    return found, StatusReader(live_state, machine, counts).read()


def test_what_was_found_is_told() -> None:
    found, status = looked_at(drift=lambda: DRIFT, shadow=lambda: {"agreement": 0.98, "frames": 4})
    assert found == {
        "avq_drift_share_ratio": 0.07,
        "avq_drift_occupancy_ratio": 0.2,
        "avq_drift_unusual_pictures": 21,
        "avq_drift_window_pictures": 30,
        "avq_drift_limit_pictures": 19,
        "avq_drifting": 1.0,
        "avq_shadow_agreement_ratio": 0.98,
    }
    assert status["drift"] == DRIFT and status["shadow"] == {"agreement": 0.98, "frames": 4}


def test_where_nobody_looks_there_is_nothing() -> None:
    found, status = looked_at()
    assert found == {} and status["drift"] is None and status["shadow"] is None
    unavailable, _ = looked_at(drift=lambda: {"available": False, "why": "no probe"})
    assert unavailable == {}
