"""``avq eval --drift``: a detector calibrated on days knows a night, and another day."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from avq.bundle import DRIFT, PROBE, open_bundle
from avq.scenes import builtin_detector_path
from avq.scenes.dataset import write_labelled_set
from tests.e2e.conftest import run_avq


@pytest.fixture(scope="module")
def day_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("days")
    write_labelled_set(folder / "days", seeds=range(48), weather="day")
    result = run_avq(
        "build", builtin_detector_path(), "--data", folder / "days", "--target", "onnxruntime", "--no-gate",
        "--option", "calibrator=mse", "-o", folder / "day.avq", "--json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder / "day.avq"


@pytest.mark.slow
@pytest.mark.parametrize(("weather", "code"), [("day", 0), ("night", 1), ("rain", 1)])
def test_nights_and_rain_are_told_from_days(
    day_bundle: Path, tmp_path: Path, weather: str, code: int
) -> None:
    write_labelled_set(tmp_path / weather, seeds=range(7000, 7020), weather=weather)
    result = run_avq("eval", day_bundle, "--data", tmp_path / weather, "--drift", "--json")
    assert result.returncode == code, result.stderr
    answer = json.loads(result.stdout)
    assert answer["drift"] is bool(code) and answer["images"] == 20
    assert (answer["beyond"] >= answer["limit"]) is bool(code)
    assert (answer["chance"] <= answer["false_alarm_rate"]) is bool(code)


def test_the_probe_is_smaller_than_the_model_it_watches(day_bundle: Path) -> None:
    bundle = open_bundle(day_bundle, allow_unaccepted=True)
    parts = bundle.manifest.parts
    assert parts[PROBE].bytes <= parts["model.onnx"].bytes and parts[DRIFT].bytes < 20_000


@pytest.mark.slow
def test_the_text_output_has_the_result_and_the_deviations(day_bundle: Path, tmp_path: Path) -> None:
    write_labelled_set(tmp_path / "night", seeds=range(7100, 7112), weather="night")
    result = run_avq("eval", day_bundle, "--data", tmp_path / "night", "--drift")
    assert (
        result.returncode == 1
        and "DRIFT: 12 of 12" in result.stdout
        and "Largest deviations" in result.stdout
    )


@pytest.mark.slow
def test_drift_without_a_probe_or_with_labels_is_refused(day_bundle: Path, tmp_path: Path) -> None:
    model = run_avq("eval", builtin_detector_path(), "--data", day_bundle.parent / "days", "--drift")
    assert model.returncode == 2 and "--drift needs a bundle" in model.stderr
    labels = day_bundle.parent / "days" / "labels.json"
    both = run_avq("eval", day_bundle, "--data", day_bundle.parent / "days", "--drift", "--labels", labels)
    assert both.returncode == 2 and "second call" in both.stderr
