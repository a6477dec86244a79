"""``avq build --strategy mixed`` on a small detector, with real engines."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from avq.bundle import PLAN_ARRAYS, PLAN_JSON, open_bundle
from avq.bundle.plan import plan_from_parts
from avq.scenes.dataset import write_labelled_set
from tests.conftest import ROOT
from tests.e2e.conftest import run_avq

CALIBRATION = ROOT / "calibration_data" / "road_scenes"
SMALL = ROOT / "tests" / "replicas" / "yolov6.onnx"
QUICK = ("--option", "pictures=4", "--option", "maps=6", "--option", "steps=2", "--option", "calibrator=mse")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    bundle = tmp_path_factory.mktemp("mixed") / "mixed.avq"
    result = run_avq(
        "build", SMALL, "--data", CALIBRATION, "--strategy", "mixed", *QUICK,
        "-o", bundle, "--json", timeout_s=1800,
    )  # fmt: skip
    assert result.stdout, result.stderr
    answer = json.loads(result.stdout)
    return Path(answer["bundle"]), answer


def test_little_is_lost_whatever_was_chosen(built: tuple[Path, dict[str, Any]]) -> None:
    _, answer = built
    assert answer["strategy"] == "mixed" and answer["chosen"]["lost"] <= 0.01


def test_the_verdict_says_what_was_chosen_and_why(built: tuple[Path, dict[str, Any]]) -> None:
    _, answer = built
    reasons = " ".join(answer["reasons"])
    if answer["int8_mac_share"] == 0:
        assert answer["accepted"] and "INT8 did not win" in reasons
    else:
        assert "measured plans" in reasons


def test_the_report_shows_the_front_and_every_group(built: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = built
    page = (folder / "report.html").read_text()
    assert "time against loss" in page and "Precision of every group" in page
    for anchor in ("all INT8", "all float"):
        assert anchor in page


def test_every_operator_of_a_quantized_plan_has_its_reason_in_numbers(
    built: tuple[Path, dict[str, Any]],
) -> None:
    folder, answer = built
    bundle = open_bundle(folder, allow_unaccepted=True)
    bundle.verify()
    if answer["int8_mac_share"] == 0:
        assert bundle.manifest.plan_digest == ""
        return
    plan = plan_from_parts(bundle.read(PLAN_JSON), bundle.read(PLAN_ARRAYS))
    assert all("% time" in p.reason for p in plan.precisions.values() if p.precision == "int8")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few pictures: enough to see what a flag does."""
    folder = tmp_path_factory.mktemp("scenes")
    write_labelled_set(folder, seeds=range(6_200_000, 6_200_020))
    return folder


def build(bundle: Path, data: Path, *flags: Any) -> tuple[int, dict[str, Any]]:
    result = run_avq(
        "build", SMALL, "--data", data, "--strategy", "mixed", *QUICK, *flags,
        "-o", bundle, "--json", timeout_s=1800,
    )  # fmt: skip
    assert result.stdout, result.stderr
    return result.returncode, json.loads(result.stdout)


@pytest.mark.slow
def test_with_labels_and_a_tolerated_loss_the_map_decides(tmp_path: Path, scenes: Path) -> None:
    """Judged by workers, where ray is installed: the same search ends in the same sentences."""
    ray = ("--ray", "local") if importlib.util.find_spec("ray") else ()
    labels = ("--labels", scenes / "labels.json", "--max-drop", "20", "--gate", "accuracy")
    code, answer = build(tmp_path / "b.avq", scenes, *labels, *ray)
    reasons = " ".join(answer["reasons"])
    assert code == 0, reasons
    assert "the fastest that loses at most 20 % of the mAP" in reasons
    assert "mAP loss %" in (Path(answer["bundle"]) / "report.html").read_text()


@pytest.mark.slow
def test_a_budget_that_nothing_meets_gets_the_fastest_and_is_refused(tmp_path: Path, scenes: Path) -> None:
    code, answer = build(tmp_path / "b.avq", scenes, "--budget-ms", "0.001")
    reasons = " ".join(answer["reasons"])
    assert code == 1 and "nothing measured is within 0.001 ms: the fastest" in reasons and "over" in reasons


@pytest.mark.slow
def test_wrong_options_are_refused_by_name(tmp_path: Path) -> None:
    result = run_avq(
        "build", SMALL, "--data", CALIBRATION, "--strategy", "mixed",
        "--option", "picture=4", "-o", tmp_path / "no",
    )  # fmt: skip
    assert result.returncode == 2 and "pictures" in result.stderr
