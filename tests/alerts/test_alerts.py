"""Alerts: n of m, zones, cool-down, and ids that outlive a process."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avq.alerts import AlertWatch, Progress, Rule, Zone, advance
from avq.errors import DataError
from avq.types import Detections, Published

LABELS = ("car", "person")
SECOND = 1_000_000_000
OFFSET_NS = 1_795_000_000 * SECOND
BOTTOM_HALF = Zone(((0.0, 0.5), (1.0, 0.5), (1.0, 1.0), (0.0, 1.0)))


def message(
    t_ns: int,
    boxes: list[list[float]],
    classes: list[int],
    *,
    camera: str = "front",
    late: bool = False,
    score: float = 0.8,
) -> Published:
    seen = Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.full(len(boxes), score, np.float32),
        np.array(classes, np.int64),
        camera,
        t_ns // 1000,
        t_ns,
    )
    return Published(seen, 5_000_000, 0, late, "normal", "d", (640, 360))


def watch(*rules: Rule, vehicle: str = "") -> AlertWatch:
    return AlertWatch(rules, LABELS, offset_ns=lambda: OFFSET_NS, vehicle=vehicle)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 3 * SECOND)), max_size=60),
    st.integers(1, 8), st.integers(1, 8), st.integers(0, 5 * SECOND),
)  # fmt: skip
def test_it_is_raised_exactly_when_n_of_m_showed_it_and_the_cooldown_is_over(
    frames: list[tuple[bool, int]], hits: int, size: int, cooldown_ns: int
) -> None:
    rule = Rule("r", hits=min(hits, size), frames=size, cooldown_ns=cooldown_ns)
    state, t_ns, seen, last = Progress(), 0, [], None
    for hit, gap_ns in frames:
        t_ns += gap_ns
        seen.append(hit)
        state, raised = advance(rule, state, hit, t_ns)
        due = hit and sum(seen[-size:]) >= rule.hits and (last is None or t_ns - last >= cooldown_ns)
        assert raised == due
        last = t_ns if raised else last


@given(
    st.lists(st.integers(1, 2 * SECOND), min_size=2, max_size=40),
    st.integers(0, 3 * SECOND),
    st.integers(0, 39),
)
def test_ids_differ_within_a_run_and_a_restart_raises_no_second_id_in_the_same_period(
    gaps_ns: list[int], cooldown_ns: int, killed_after: int
) -> None:
    rule = Rule("r", classes=frozenset({"car"}), cooldown_ns=cooldown_ns)
    times = np.cumsum(gaps_ns).tolist()
    frames = [message(t_ns, [[0, 0, 9, 9]], [0]) for t_ns in times]
    whole = (
        [alert for frame in frames for alert in one_run.on_frame(frame)] if (one_run := watch(rule)) else []
    )
    assert len({alert.id for alert in whole}) == len(whole)
    first, second = watch(rule), watch(rule)
    parts = [a for f in frames[:killed_after] for a in first.on_frame(f)]
    parts += [a for f in frames[killed_after:] for a in second.on_frame(f)]
    periods = {(OFFSET_NS + alert.t_ns) // max(cooldown_ns, 1) for alert in parts}
    assert len({alert.id for alert in parts}) == len(periods)


def test_the_same_frames_raise_the_same_alerts_word_for_word() -> None:
    rule = Rule("r", classes=frozenset(LABELS), hits=2, frames=3, cooldown_ns=SECOND, zone=BOTTOM_HALF)
    frames = [message(n * SECOND // 3, [[0, 200, 50, 250]], [n % 2]) for n in range(30)]
    runs = [[a.as_event() for f in frames for a in one.on_frame(f)] for one in (watch(rule), watch(rule))]
    assert runs[0] == runs[1] and len(runs[0]) == 10
    other = [a.id for f in frames for a in watch(rule, vehicle="car-18").on_frame(f)]
    assert not {a["id"] for a in runs[0]} & set(other)


def test_class_score_zone_and_camera_must_all_fit() -> None:
    rule = Rule(
        "r", classes=frozenset({"person"}), min_score=0.5, zone=BOTTOM_HALF, cameras=frozenset({"front"})
    )
    low, high = [100.0, 150.0, 140.0, 300.0], [100.0, 10.0, 140.0, 100.0]
    assert len(watch(rule).on_frame(message(1, [low], [1]))) == 1
    assert not watch(rule).on_frame(message(1, [low], [0]))
    assert not watch(rule).on_frame(message(1, [high], [1]))
    assert not watch(rule).on_frame(message(1, [low], [1], score=0.4))
    assert not watch(rule).on_frame(message(1, [low], [1], camera="rear"))
    assert len(watch(replace(rule, cameras=frozenset())).on_frame(message(1, [low], [1], camera="rear"))) == 1


def test_the_best_detection_is_told() -> None:
    rule = Rule("r", classes=frozenset(LABELS), zone=BOTTOM_HALF)
    frame = message(1, [[0, 0, 9, 9], [10, 200, 40, 300], [50, 200, 90, 310]], [0, 1, 0])
    scores = np.array([0.9, 0.6, 0.8], np.float32)
    frame = replace(frame, detections=replace(frame.detections, scores=scores))
    (alert,) = watch(rule).on_frame(frame)
    assert (alert.label, alert.box_xyxy_px) == ("car", (50, 200, 90, 310))
    assert alert.score == pytest.approx(0.8)


def test_a_box_on_the_border_of_the_picture_is_in_a_zone_that_ends_there() -> None:
    assert BOTTOM_HALF.holds(np.array([[600, 300, 640, 360], [620, 300, 700, 400]]), (640, 360)).all()


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_a_triangle_holds_what_lies_under_its_slope(x: float, y: float) -> None:
    triangle = Zone(((0.0, 0.0), (1.0, 1.0), (0.0, 1.0)))
    if abs(x - y) > 1e-3:
        assert bool(triangle.holds(np.array([[x, 0, x, y]]), (1, 1))[0]) == (y > x)


def test_the_centre_may_be_the_anchor() -> None:
    box = np.array([[0, 0, 100, 300]])
    assert BOTTOM_HALF.holds(box, (640, 360))[0]
    assert not replace(BOTTOM_HALF, anchor="center").holds(box, (640, 360))[0]


def test_a_zone_without_the_size_of_the_picture_is_told_not_passed_over() -> None:
    rule = Rule("r", classes=frozenset({"car"}), zone=BOTTOM_HALF)
    with pytest.raises(DataError, match="size of the picture"):
        watch(rule).on_frame(replace(message(1, [[0, 0, 9, 9]], [0]), picture_size_px=(0, 0)))


def test_late_frames_dead_cameras_and_drift_are_conditions_too() -> None:
    rules = [
        Rule("late", "budget_miss", hits=2, frames=3),
        Rule("dead", "camera_dead", cooldown_ns=SECOND),
        Rule("odd", "drift"),
    ]
    one = watch(*rules)
    late = [a for n in range(4) for a in one.on_frame(message(n, [], [], late=n in (0, 2)))]
    assert [(a.rule, a.seq, a.label) for a in late] == [("late", 0, "")]
    dead = {"kind": "camera_dead", "camera": "rear", "t_ns": 5, "reason": "silent for 9 s"}
    assert [(a.rule, a.camera, a.reason) for a in one.on_event(dead)] == [("dead", "rear", "silent for 9 s")]
    assert one.on_event({**dead, "t_ns": 6}) == []
    assert [a.rule for a in one.on_event({"kind": "drift_raised", "t_ns": 9})] == ["odd"]
    assert one.on_event({"kind": "alert", "t_ns": 9}) == []
