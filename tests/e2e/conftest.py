"""One real bundle for all end-to-end tests: the built-in detector, built as a user would."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PRODUCTS_SATURATE, ROOT
from tests.e2e.resealing import resealed

CALIBRATION = ROOT / "calibration_data" / "road_scenes"
Avq = Callable[..., "subprocess.CompletedProcess[str]"]


def run_avq(
    *arguments: str | Path, timeout_s: float = 900, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own."""
    command = [sys.executable, "-c", "from avq.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, cwd=cwd, check=False)


def built_once(
    factory: pytest.TempPathFactory, name: str, *arguments: str | Path
) -> tuple[Path, dict[str, Any]]:
    """(bundle folder, object of ``avq build --json``): one build for all processes of a test run."""
    own = factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
    folder.mkdir(exist_ok=True)
    bundle, result = folder / "bundle.avq", folder / "build.json"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.exists():
            done = run_avq("build", *arguments, "-o", bundle, "--json")
            assert done.stdout, done.stderr
            put_in_place(json.loads(done.stdout), bundle)
            result.write_text(done.stdout)
    return bundle, json.loads(result.read_text())


def refused_for_time_only(answer: dict[str, Any]) -> bool:
    """Where INT8 is no faster than float (a processor without dot products, a machine that stutters) the gate's no
    is right, and says nothing about what is in the bundle."""
    return answer["accuracy_verdict"] == "yes" and answer["time_verdict"] in ("no", "cannot tell")


def refused_for_saturation(answer: dict[str, Any]) -> bool:
    """Where products of full-range INT8 saturate, boxes are lost, and the gate is right to refuse the bundle."""
    return PRODUCTS_SATURATE and answer["chosen"]["lost"] <= 0.05


def put_in_place(answer: dict[str, Any], bundle: Path) -> None:
    """Accept a bundle that was refused for this machine's INT8 alone, as if the machine were another one."""
    if not bundle.exists():
        assert refused_for_time_only(answer) or refused_for_saturation(answer), answer["reasons"]
        shutil.copytree(answer["bundle"], bundle)
        resealed(bundle, accepted=True)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """(bundle folder, object of ``avq build --json``) of the built-in detector."""
    from avq.scenes import builtin_detector_path

    return built_once(
        tmp_path_factory, "built", builtin_detector_path(), "--data", CALIBRATION,
        "--labels", CALIBRATION / "labels.json", "--strategy", "static", "--target", "cpu",
        "--gate", "accuracy",
    )  # fmt: skip


@pytest.fixture(scope="session")
def pending(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built for TensorRT on a machine that has none."""
    from avq.engines import engine_by_name
    from avq.scenes import builtin_detector_path

    if engine_by_name("tensorrt").status().can_run:
        pytest.skip("this machine has a card and TensorRT")
    folder, answer = built_once(
        tmp_path_factory, "pending", builtin_detector_path(), "--data", CALIBRATION, "--strategy", "static",
        "--target", "tensorrt", "--dla", "--option", "calibrator=mse",
    )  # fmt: skip
    assert answer["accepted"] == "pending-target" and answer["chosen"]["p50_ms"] is None
    return folder
