"""Network cameras that misbehave: told within three frame periods, replaced, and never in the others' way."""

from __future__ import annotations

import signal

import pytest

from avq.daemon import FrameResult, RestartPolicy, RunOptions, serve_bundle
from avq.errors import MachineError
from avq.sinks import CallbackSink
from avq.types import LatencyBudget
from tests.daemon.daemon_kit import null_parts
from tests.faults.fault_camera import Connection, FaultCamera
from tests.faults.scenarios import left_over, play, replaced_s, resources, scenario, silent_periods


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [range(5), range(5, 10)], ids=["first five", "second five"])
def test_faults_are_told_and_cured_camera_by_camera(seeds: range) -> None:
    before = resources()
    played = play([scenario(seed) for seed in seeds])
    assert played.balanced
    for name, life in played.lives.items():
        assert life.seqs == sorted(set(life.seqs)), name  # numbered on over every restart
        if name.startswith("jitter"):
            assert played.restarts[name] == 0, life.events
            continue
        assert life.times("camera_restarted") and life.times("camera_resumed"), (name, life.events)
        assert all(periods <= 3.0 for periods in silent_periods(life)), (name, life.events)
        assert replaced_s(life), name
        assert all(event["cause"] and event["reason"] for event in life.events)
    assert sum(len(silent_periods(life)) for life in played.lives.values()) >= 2
    assert left_over(before) == {}


@pytest.mark.slow
def test_cameras_that_never_open_end_the_run_and_tell_why() -> None:
    before = resources()
    camera = FaultCamera([Connection("raw_garbage")])
    options = RunOptions(open_timeout_ms=300, restarts=RestartPolicy(max_restarts=2))
    sources = {"front": camera.uri, "rear": "http://127.0.0.1:1/nobody"}
    try:
        with pytest.raises(MachineError, match="no camera could be opened: front, rear") as caught:
            serve_bundle(
                null_parts(), sources=sources, sinks=[], budget=LatencyBudget(10**9), options=options
            )
    finally:
        camera.close()
    assert caught.value.exit_code == 3
    assert left_over(before) == {}


@pytest.mark.slow
def test_a_camera_that_stays_dead_is_told_and_the_others_are_served() -> None:
    seen: list[str] = []
    sink = CallbackSink(lambda message, _: seen.append(message.detections.camera), wants_pixels=False)
    told: list[str] = []
    after: list[int] = []

    def enough(turn: FrameResult) -> None:
        """Ctrl-C, some frames after the camera was given up."""
        after.extend([turn.published.detections.seq] * ("camera_dead" in told))
        if len(after) == 20:
            signal.raise_signal(signal.SIGINT)

    options = RunOptions(
        restarts=RestartPolicy(max_restarts=1),
        open_timeout_ms=500,
        on_event=lambda event: told.append(event["kind"]),
        on_result=enough,
    )
    sources = {"dead": "http://127.0.0.1:1/nobody", "alive": "scene://drive?fps=30&size=96x64"}
    summary = serve_bundle(
        null_parts(), sources=sources, sinks=[sink], budget=LatencyBudget(10**9), options=options
    )
    kinds = [event["kind"] for event in summary.events if event.get("camera") == "dead"]
    assert kinds[0] == "camera_stalled" and "camera_restarted" in kinds and "camera_dead" in kinds
    assert set(seen) == {"alive"} and summary.counts.balanced and summary.exit_code == 0
    dead = next(event for event in summary.events if event["kind"] == "camera_dead")
    assert "1 restarts within 60 s" in dead["reason"]
