"""One real bundle for all end-to-end tests: the built-in detector, built as a user would."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

CALIBRATION = ROOT / "calibration_data" / "road_scenes"
Avq = Callable[..., "subprocess.CompletedProcess[str]"]


def run_avq(*arguments: str | Path, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own."""
    command = [sys.executable, "-c", "from avq.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """(bundle folder, what ``avq build --json`` said) of the built-in detector."""
    from avq.scenes import builtin_detector_path

    bundle = tmp_path_factory.mktemp("built") / "builtin.avq"
    result = run_avq(
        "build", builtin_detector_path(), "--data", CALIBRATION, "--labels", CALIBRATION / "labels.json",
        "--strategy", "static", "--target", "cpu", "-o", bundle, "--json",
    )  # fmt: skip
    assert result.stdout, result.stderr
    return bundle, json.loads(result.stdout)


@pytest.fixture(scope="session")
def pending(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built for TensorRT on a machine that has none."""
    from avq.engines import engine_by_name
    from avq.scenes import builtin_detector_path

    if engine_by_name("tensorrt").status().can_run:
        pytest.skip("this machine has a card and TensorRT")
    folder = tmp_path_factory.mktemp("pending") / "trt.avq"
    done = run_avq(
        "build", builtin_detector_path(), "--data", CALIBRATION, "--strategy", "static",
        "--target", "tensorrt", "--dla",
        "-o", folder, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["accepted"] == "pending-target" and answer["chosen"]["p50_ms"] is None
    return folder
