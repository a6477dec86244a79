"""No false alarm on runs without change; every injected change found, and named by frame and field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avq.errors import DataError
from avq.plugins import PluginHost
from avq.progress import Silent
from avq.replay import ReplayRequest, ReplayResult, replay
from avq.replay.command import CompareOptions, compare
from avq.replay.differences import Tolerances, learn_tolerances
from avq.replay.reference import read_reference, write_reference
from avq.replay.verdict import judge
from avq.types import Calibrator, PreprocessSpec
from tests.replay.bundle_kit import int8_plan, write_real_bundle
from tests.replay.injected import CHANGES, Injected
from tests.replay.replay_kit import null_bundle, null_host

DRIVE = "scene://drive?seed=6&frames=8"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ReplayResult:
    bundle = null_bundle(tmp_path_factory.mktemp("bundles") / "plain.avq")
    return replay(ReplayRequest(DRIVE, bundle), host=null_host())


def test_there_are_fifty_kinds_of_change() -> None:
    assert len({change.name for change in CHANGES}) >= 50


@pytest.mark.parametrize("injected", CHANGES, ids=lambda change: change.name)
def test_an_injected_change_is_found_and_named(run: ReplayResult, injected: Injected) -> None:
    changed = injected.change(run)
    if injected.name == "camera renamed":
        with pytest.raises(DataError, match="no frame in common"):
            judge(run, changed, Tolerances())
        return
    tier: Any
    for tier in ("exact",) if injected.bits_only else ("exact", "toleranced"):
        verdict = judge(run, changed, Tolerances(), tier)
        assert verdict.differences and not verdict.identical
        named = [d for d in verdict.differences if d.field in injected.fields]
        assert named, f"{tier}: only {sorted({d.field for d in verdict.differences})}"
        assert not injected.frames or {d.frame for d in named} & set(injected.frames)
        assert verdict.reasons


def test_runs_without_change_raise_no_alarm(run: ReplayResult, tmp_path: Path) -> None:
    bundle = null_bundle(tmp_path / "again.avq")
    for _ in range(5):
        again = replay(ReplayRequest(DRIVE, bundle), host=null_host())
        verdict = judge(run, again, Tolerances())
        assert verdict.tier == "exact" and verdict.identical and not verdict.differences


def test_what_is_within_learned_tolerances_is_no_difference(run: ReplayResult) -> None:
    moved = CHANGES[0].change(run)  # one pixel
    spread = learn_tolerances([run.detections, moved.detections])
    assert spread.runs == 2 and not spread.repeatable and spread.spread_px == pytest.approx(1.0)
    verdict = judge(run, moved, spread)
    assert verdict.tier == "toleranced" and not verdict.differences and not verdict.identical


OTHER_BUNDLES: dict[str, Any] = {
    "other preprocessing: colours exchanged": {
        "preprocess": PreprocessSpec(width_px=64, height_px=64, channel_order="BGR")
    },
    "other preprocessing: stretched": {
        "preprocess": PreprocessSpec(width_px=64, height_px=64, resize="stretch")
    },
    "other preprocessing: another padding": {
        "preprocess": PreprocessSpec(width_px=64, height_px=64, pad_value=0)
    },
    "other outputs: quantized": {"model": b"quantized"},
    "other outputs: shifted": {"model": b"shifted"},
}


@pytest.mark.parametrize("name", OTHER_BUNDLES)
def test_another_bundle_is_listed_frame_by_frame(run: ReplayResult, name: str, tmp_path: Path) -> None:
    host = null_host(
        {
            b"quantized": lambda table: np.round(table * 2.0) / 2.0,
            b"shifted": lambda table: table + np.float32(1.0) * (np.arange(6) < 2)[None, :, None],
        }
    )
    bundle = null_bundle(tmp_path / "other.avq", **OTHER_BUNDLES[name])
    verdict = judge(run, replay(ReplayRequest(DRIVE, bundle), host=host), Tolerances())
    assert verdict.tier == "metric" and verdict.differences
    assert {d.field for d in verdict.differences} <= {"box", "box_xyxy_px", "score", "class_id"}
    assert {d.frame for d in verdict.differences} <= set(range(8))


ROAD = "scene://drive?seed=5&weather=day&frames=3"
#: How a real INT8 bundle is built otherwise -> what is named as the cause.
OTHER_BUILDS: dict[str, tuple[dict[str, Any], str]] = {
    "other calibrator: mse": ({"calibrator": "mse"}, "scale of"),
    "other calibrator: entropy": ({"calibrator": "entropy"}, "scale of"),
    "other calibrator: percentile": ({"calibrator": "percentile"}, "scale of"),
    "other preprocessing: colours exchanged": ({"channel_order": "RGB"}, "preprocess"),
    "other preprocessing: stretched": ({"resize": "stretch"}, "preprocess"),
}


def rebuilt(folder: Path, *, calibrator: Calibrator = "minmax", **preprocess: Any) -> Path:
    """The built-in detector in INT8; its thresholds follow from counts, so nothing is calibrated again."""
    return write_real_bundle(folder, int8_plan(calibrator=calibrator), **preprocess)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_BUILDS)
def test_a_bundle_built_otherwise_is_found_and_named(name: str, tmp_path: Path) -> None:
    changes, cause = OTHER_BUILDS[name]
    before, after = rebuilt(tmp_path / "before.avq"), rebuilt(tmp_path / "after.avq", **changes)
    outcome = compare(ReplayRequest(ROAD, after), CompareOptions(before), PluginHost(), Silent())
    assert not outcome.passed and outcome.verdict is not None and outcome.verdict.tier == "metric"
    assert {d.frame for d in outcome.differences} == {0, 1, 2}
    assert {d.field for d in outcome.differences} & {"box_xyxy_px", "score", "box"}
    (told,) = (reason for reason in outcome.reasons if reason.startswith("the bundles differ in"))
    assert cause in told
    assert (cause == "preprocess") == all(row["where"] == "preprocess" for row in outcome.built)


def test_a_bundle_built_again_the_same_way_raises_no_alarm(tmp_path: Path) -> None:
    before, after = rebuilt(tmp_path / "before.avq"), rebuilt(tmp_path / "after.avq")
    outcome = compare(ReplayRequest(ROAD, after), CompareOptions(before), PluginHost(), Silent())
    assert outcome.passed and outcome.verdict is not None
    assert outcome.verdict.identical and not outcome.built


def test_a_reference_comes_back_whole_and_notices_an_edit(run: ReplayResult, tmp_path: Path) -> None:
    path = tmp_path / "ref.mcap"
    nan = next(change for change in CHANGES if change.name == "NaN box").change(run)
    address = write_reference(path, nan, Tolerances(box_px=0.25))
    back = read_reference(path)
    assert back.address == address and back.tolerances.box_px == 0.25
    assert (back.result.sha256, back.result.decisions_sha256) == (nan.sha256, nan.decisions_sha256)
    assert write_reference(tmp_path / "twice.mcap", nan, Tolerances(box_px=0.25)) == address
    told = path.read_bytes()
    head = told.index(b'"box_px":0.25')
    path.write_bytes(told[:head] + b'"box_px":9.25' + told[head + 13 :])
    with pytest.raises(DataError, match="damaged or was edited"):
        read_reference(path)
