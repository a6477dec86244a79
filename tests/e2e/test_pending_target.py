"""A bundle for a GPU that is not here: built, proven on the parser's own bytes, and kept from serving until timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from avq.bundle import MODEL, open_bundle
from avq.engines.tensorrt_rtx import TensorRtRtxEngine
from tests.conftest import ROOT
from tests.e2e.conftest import CALIBRATION, run_avq

STATUS = TensorRtRtxEngine().status()
pytestmark = [
    pytest.mark.skipif(not STATUS.available, reason=f"tensorrt-rtx: {STATUS.why}"),
    pytest.mark.skipif(STATUS.can_run, reason="this machine has a GPU: its times are measured"),
]
MODEL_FILE = ROOT / "tests" / "replicas" / "yolov6.onnx"
FLAGS = ("--data", CALIBRATION, "--target", "tensorrt-rtx")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    bundle = tmp_path_factory.mktemp("pending") / "rtx.avq"
    result = run_avq(
        "build", MODEL_FILE, *FLAGS, "--gpu-arch", "sm86,8.9", "--option", "calibrator=mse",
        "--option", "depthwise=int8", "-o", bundle, "--json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return bundle, json.loads(result.stdout)


def test_accuracy_is_judged_and_time_is_not(built: tuple[Path, dict[str, Any]]) -> None:
    _, answer = built
    assert answer["accepted"] == "pending-target" and answer["chosen"]["lost"] <= 0.01
    assert answer["chosen"]["p50_ms"] is None and answer["float"]["p50_ms"] is None
    assert any("time was not measured" in reason for reason in answer["reasons"])


def test_most_of_the_work_is_behind_quantizers_and_the_rest_is_fp16(
    built: tuple[Path, dict[str, Any]],
) -> None:
    folder, answer = built
    assert answer["int8_mac_share"] >= 0.5
    model = onnx.load_model_from_string(open_bundle(folder, allow_unaccepted=True).read(MODEL))
    kinds = {t.data_type for t in model.graph.initializer if len(t.dims) == 4}
    assert kinds <= {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT16}


def test_every_architecture_is_a_part_and_stands_beside_its_fp16_twin(
    built: tuple[Path, dict[str, Any]],
) -> None:
    folder, answer = built
    bundle = open_bundle(folder, allow_unaccepted=True)
    bundle.verify()
    assert bundle.has("engine.sm86") and bundle.has("engine.sm89") and bundle.manifest.isa == ""
    for row in answer["engines"]:
        assert row["engine kB"] > 0 and row["FP16 engine kB"] > 0 and row["build s"] >= 0
        if row["engine kB"] > row["FP16 engine kB"]:
            assert any("larger than the FP16 engine" in reason for reason in answer["reasons"])


def test_it_is_not_served_before_the_vehicle_has_confirmed_it(built: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = built
    result = run_avq("run", "--bundle", folder, "--source", "scene://drive", "--frames", "3")
    assert result.returncode == 1 and "has not been measured on its target yet" in result.stderr


def test_eval_judges_its_very_bytes(built: tuple[Path, dict[str, Any]]) -> None:
    folder, _answer = built
    result = run_avq("eval", folder, "--data", CALIBRATION, "--reference", MODEL_FILE, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["reference"]["lost"] <= 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [(("--gpu-arch", "sm87"), "Orin"), (("--budget-ms", "3"), "--budget-ms needs the GPU")],
)
def test_invalid_requests_are_refused_before_the_first_picture(
    flags: Any, message: str, tmp_path: Path
) -> None:
    result = run_avq("build", MODEL_FILE, *FLAGS, *flags, "-o", tmp_path / "no")
    assert result.returncode == 2 and message in result.stderr and not (tmp_path / "no").exists()
