"""``avq build --strategy qat --option encodings=FILE``: scales for a float model become a measured bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avq.bundle import PLAN_ARRAYS, PLAN_JSON, open_bundle
from avq.bundle.plan import plan_from_parts
from avq.scenes import builtin_detector_path
from tests.conftest import PRODUCTS_SATURATE
from tests.e2e.conftest import CALIBRATION, run_avq

HEADER = "TRT-8501-EntropyCalibration2"


def build(*flags: str | Path) -> tuple[int, str]:
    result = run_avq(
        "build", builtin_detector_path(), "--strategy", "qat", "--data", CALIBRATION, "--target", "onnxruntime",
        "--no-gate", *flags,
    )  # fmt: skip
    return result.returncode, result.stdout + result.stderr


@pytest.mark.slow
def test_a_partial_cache_is_completed_told_and_measured(tmp_path: Path) -> None:
    """The picture spans 0 to 1 and is named; an unknown tensor is listed; the rest is calibrated.

    The file is next to the recipe that names it, and is found from any working folder.
    """
    bundle, recipe = tmp_path / "cached.avq", tmp_path / "recipe.toml"
    (tmp_path / "calib.cache").write_text(f"{HEADER}\nimages: 3c010204\nstem: relu: 3c010204\n")
    recipe.write_text('[options]\nencodings = "calib.cache"\n')
    code, output = build("--recipe", recipe, "-o", bundle)
    assert code == 0, output
    lost = "lost boxes" if PRODUCTS_SATURATE else "lost boxes 0.0"
    for expected in ("AVQ-Q50", "stem: relu", "AVQ-Q58", "trt-cache", lost):
        assert expected in output, output
    opened = open_bundle(bundle, allow_unaccepted=True)
    plan = plan_from_parts(opened.read(PLAN_JSON), opened.read(PLAN_ARRAYS))
    assert plan.owner == "qat" and plan.symmetric
    named = plan.point_for("images_mul", "stem.conv", 0)
    assert named is not None and named.scale == np.float32(1 / 127)
    assert all(plan.point_for(f"head{s}.block.relu", f"head{s}.box_out", 0) is None for s in (8, 16, 32))
    assert opened.manifest.metrics["int8_mac_share"] > 0.5


@pytest.mark.slow
def test_a_broken_file_is_refused_with_its_line(tmp_path: Path) -> None:
    cache = tmp_path / "calib.cache"
    cache.write_text(f"{HEADER}\nimages: 0.0078\n")
    code, output = build("--option", f"encodings={cache}", "-o", tmp_path / "x.avq")
    assert code == 2
    assert "calib.cache:2: 0.0078" in output and "hexadecimal" in output
    assert not (tmp_path / "x.avq").exists()


@pytest.mark.slow
def test_a_file_of_another_model_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    cache = tmp_path / "calib.cache"
    cache.write_text(f"{HEADER}\nimage: 3c010204\n")
    code, output = build("--option", f"encodings={cache}", "-o", tmp_path / "x.avq")
    assert code == 2
    assert "AVQ-Q50" in output and "image (calib.cache:2)" in output and "'images'" in output
