"""A build as users run it: real model, real engines, real gate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from avq.bundle import GOLDEN, PLAN_ARRAYS, PLAN_JSON, open_bundle
from avq.bundle.plan import plan_from_parts
from avq.errors import RefusedError
from avq.scenes import builtin_detector_path
from tests.conftest import PRODUCTS_SATURATE, ROOT
from tests.e2e.conftest import CALIBRATION, run_avq

#: For what the gate says whatever the model.
SMALL = ROOT / "tests" / "replicas" / "yolov6.onnx"


def test_the_answer_has_every_key_of_the_contract(built: tuple[Path, dict[str, Any]]) -> None:
    _, answer = built
    assert {
        "bundle", "strategy", "target", "engine", "accepted", "metric", "reasons", "float", "chosen",
        "int8_mac_share", "seconds",
    } <= set(answer)  # fmt: skip
    assert {"map", "p50_ms"} <= set(answer["float"])
    assert {"map", "p50_ms", "lost", "confidence_shift"} <= set(answer["chosen"])


def test_int8_keeps_the_accuracy_of_the_built_in_detector(built: tuple[Path, dict[str, Any]]) -> None:
    """The time bar of the gate is the machine's business; the accuracy bar is ours on every machine."""
    _, answer = built
    loss = (answer["float"]["map"] - answer["chosen"]["map"]) / answer["float"]["map"]
    assert loss <= 0.02  # the limit of the gate
    assert PRODUCTS_SATURATE or answer["chosen"]["lost"] <= 0.01
    assert answer["int8_mac_share"] > 0.9


def test_the_bundle_checks_part_by_part_and_its_plan_says_why(built: tuple[Path, dict[str, Any]]) -> None:
    bundle = open_bundle(folder_of(built), allow_unaccepted=True)
    bundle.verify()
    plan = plan_from_parts(bundle.read(PLAN_JSON), bundle.read(PLAN_ARRAYS))
    assert plan.digest == bundle.manifest.plan_digest and plan.graph_digest == bundle.manifest.graph_digest
    assert all(precision.reason for precision in plan.precisions.values())
    assert {p.precision for p in plan.precisions.values()} == {"int8", "fp32"}


def test_golden_frames_come_out_again(built: tuple[Path, dict[str, Any]]) -> None:
    from avq.engines import builtin_engines
    from avq.measure.detector import open_session

    bundle = open_bundle(folder_of(built), allow_unaccepted=True)
    golden = bundle.arrays(GOLDEN)
    session = open_session(bundle, {engine.name: engine for engine in builtin_engines()})
    for name, value in session.infer(golden["input_0"]).items():
        np.testing.assert_array_equal(value, golden[f"output_0:{name}"])


def test_the_report_is_one_small_page_that_asks_nothing_of_the_network(
    built: tuple[Path, dict[str, Any]],
) -> None:
    page = (folder_of(built) / "report.html").read_text()
    assert len(page) < 3_000_000 and "Precision of every layer" in page
    assert "http://" not in page and "https://" not in page


def test_the_same_request_gives_the_same_plan(built: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    result = run_avq(
        "build", builtin_detector_path(), "--data", CALIBRATION, "--labels", CALIBRATION / "labels.json",
        "--target", "onnxruntime", "--no-gate", "-o", tmp_path / "again.avq", "--json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    again = open_bundle(tmp_path / "again.avq", allow_unaccepted=True).manifest
    assert again.plan_digest == open_bundle(folder_of(built), allow_unaccepted=True).manifest.plan_digest


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], int]:
    """A build that no engine can satisfy: a budget of a nanosecond."""
    output = tmp_path_factory.mktemp("refused") / "late.avq"
    result = run_avq(
        "build", SMALL, "--data", CALIBRATION, "--budget-ms", "0.000001",
        "--option", "calibrator=minmax", "-o", output, "--json",
    )  # fmt: skip
    return output, json.loads(result.stdout), result.returncode


@pytest.mark.slow
def test_a_refused_build_answers_no_and_keeps_the_evidence(refused: tuple[Path, dict[str, Any], int]) -> None:
    output, answer, code = refused
    assert code == 1 and answer["accepted"] is False and not output.exists()
    assert any("budget" in reason for reason in answer["reasons"]) and answer["next"]
    assert answer["bundle"] == f"{output}.rejected" and answer["time_verdict"] == "no"
    assert (Path(answer["bundle"]) / "report.html").is_file()
    assert not [path for path in output.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_no_gate_writes_a_bundle_that_only_insistence_serves(tmp_path: Path) -> None:
    output = tmp_path / "late.avq"
    build = run_avq(
        "build", SMALL, "--data", CALIBRATION, "--budget-ms", "0.000001",
        "--option", "calibrator=minmax", "--no-gate", "-o", output, "--json",
    )  # fmt: skip
    assert build.returncode == 0 and json.loads(build.stdout)["accepted"] is False
    with pytest.raises(RefusedError):
        open_bundle(output)
    serve = ("run", "--bundle", output, "--source", "scene://drive?seed=3&fps=60", "--frames", "5", "--json")
    assert run_avq(*serve).returncode == 1
    assert run_avq(*serve, "--allow-unaccepted").returncode == 0


@pytest.mark.slow
def test_pictures_without_a_single_box_are_refused_before_any_search(tmp_path: Path) -> None:
    pictures, rng = tmp_path / "noise", np.random.default_rng(0)
    pictures.mkdir()
    for index in range(8):
        coarse = rng.integers(90, 110, (12, 16, 3), np.uint8)
        cv2.imwrite(str(pictures / f"{index}.png"), cv2.resize(coarse, (160, 120)))
    output = tmp_path / "blind.avq"
    build = run_avq(
        "build", builtin_detector_path(), "--data", pictures, "--strategy", "mixed", "-o", output, "--json"
    )
    error = json.loads(build.stdout)["error"]
    assert build.returncode == 1 and "no box with score >= 0.5" in error["what"]
    assert "8 pictures" in error["seen"] and "--data" in error["fix"]
    assert not list(tmp_path.glob("*.avq*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("categories", "moved_px", "message"),
    [
        (["Vehicle", "dog"], 0, "no label category"),
        (["car", "truck", "pedestrian", "cyclist", "traffic_light"], 5000, "detects no labelled object"),
    ],
)
def test_useless_labels_are_refused_before_any_search(
    tmp_path: Path, categories: Any, moved_px: int, message: str
) -> None:
    table = json.loads((CALIBRATION / "labels.json").read_text())
    ids = [category["id"] for category in table["categories"]]
    table["categories"] = [{"id": i, "name": n} for i, n in zip(ids, categories, strict=False)]
    known = {category["id"] for category in table["categories"]}
    table["annotations"] = [a for a in table["annotations"] if a["category_id"] in known]
    for box in table["annotations"]:
        box["bbox"][0] += moved_px
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps(table))
    done = run_avq("build", SMALL, "--data", CALIBRATION, "--labels", labels, "-o", tmp_path / "b.avq")
    assert done.returncode in (1, 2) and message in done.stderr, done.stderr
    assert "static: plans tried" not in done.stdout
    assert not list(tmp_path.glob("*b.avq*"))


@pytest.mark.slow
def test_an_undecoded_model_builds_by_noise_and_is_never_served(tmp_path: Path) -> None:
    output = tmp_path / "raw.avq"
    build = run_avq(
        "build", SMALL, "--data", CALIBRATION, "--decoder", "none",
        "--preprocess", "builtin", "--option", "calibrator=mse", "--no-gate", "-o", output, "--json",
    )  # fmt: skip
    answer = json.loads(build.stdout)
    assert build.returncode == 0, build.stderr
    assert "SQNR" in answer["metric"] and answer["chosen"]["lost"] is None
    serve = run_avq("run", "--bundle", output, "--source", "scene://drive", "--allow-unaccepted", "--json")
    assert serve.returncode == 2 and "--decoder" in json.loads(serve.stdout)["error"]["fix"]


def folder_of(built: tuple[Path, dict[str, Any]]) -> Path:
    """Where the build left it: its place, or the staging folder when this machine's timing was refused."""
    return Path(built[1]["bundle"])
