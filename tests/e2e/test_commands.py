"""The other commands on a real bundle."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mcap.reader import make_reader

from avq.scenes import builtin_detector_path
from avq.scenes.dataset import write_labelled_set
from tests.e2e.conftest import run_avq
from tests.e2e.test_build import folder_of

DRIVE = "scene://drive?seed=5&fps=60"
#: So slow that the recorder of a busy machine misses nothing.
SLOW_DRIVE = "scene://drive?seed=5&fps=8"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_labelled_set(folder, seeds=range(4_000_000, 4_000_024), ignore_below_px=32)
    return folder


def test_eval_measures_bundle_and_float_model_on_the_same_labels(
    built: tuple[Path, dict[str, Any]], scenes: Path
) -> None:
    result = run_avq(
        "eval", folder_of(built), "--data", scenes, "--labels", scenes / "labels.json",
        "--reference", builtin_detector_path(), "--json",
    )  # fmt: skip
    answer = json.loads(result.stdout)
    assert result.returncode == 0 and answer["images"] == 24
    assert answer["map"] > 0.5 and abs(answer["map"] - answer["reference"]["map"]) < 0.02
    change = answer["reference"]["map_change"]
    assert change["low"] <= change["difference"] <= change["high"] and change["low"] < change["high"]
    assert change["difference"] == pytest.approx(answer["map"] - answer["reference"]["map"], abs=1e-4)
    assert set(answer["per_class"]) == {"car", "truck", "pedestrian", "cyclist", "traffic_light"}


def test_eval_without_labels_takes_the_float_models_boxes_as_truth(
    built: tuple[Path, dict[str, Any]], scenes: Path
) -> None:
    result = run_avq(
        "eval", folder_of(built), "--data", scenes, "--reference", builtin_detector_path(), "--json"
    )
    answer = json.loads(result.stdout)
    assert result.returncode == 0 and answer["map"] > 0.8 and answer["reference"]["lost"] <= 0.02


def test_eval_with_nothing_to_compare_with_is_refused(
    built: tuple[Path, dict[str, Any]], scenes: Path
) -> None:
    result = run_avq("eval", folder_of(built), "--data", scenes, "--json")
    assert result.returncode == 2 and "--labels" in json.loads(result.stdout)["error"]["fix"]


def test_bench_times_a_bundle_against_itself_as_equal(built: tuple[Path, dict[str, Any]]) -> None:
    result = run_avq("bench", folder_of(built), folder_of(built), "--frames", "30", "--json")
    answer = json.loads(result.stdout)
    assert result.returncode == 0 and len(answer["entries"]) == 2
    (ratio,) = answer["ratios"]
    assert ratio["low"] <= 1.1 and ratio["high"] >= 0.9


def test_inspect_shows_the_decisions(built: tuple[Path, dict[str, Any]]) -> None:
    answer = json.loads(run_avq("inspect", folder_of(built), "--json").stdout)
    assert answer["kind"] == "bundle" and answer["plan"]["precisions"]["int8"] > 10
    assert {"digest", "accepted", "inputs", "outputs", "preprocess", "parts"} <= set(answer)


def test_a_bundle_does_not_differ_from_itself(built: tuple[Path, dict[str, Any]]) -> None:
    result = run_avq("diff", folder_of(built), folder_of(built), "--json")
    assert result.returncode == 0 and json.loads(result.stdout)["differences"] == []


def test_run_publishes_lines_records_a_log_and_balances_its_books(
    built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    log = tmp_path / "drive.mcap"
    result = run_avq(
        "run", "--bundle", folder_of(built), "--source", DRIVE, "--frames", "40", "--log", log,
        "--allow-unaccepted", "--json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    *lines, summary = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(lines) == summary["published"] == 40
    assert (
        summary["captured"] == summary["published"] + sum(summary["dropped"].values()) + summary["in_flight"]
    )
    assert {"camera", "seq", "t_capture_ns", "age_ms", "late", "mode", "bundle", "detections"} <= set(
        lines[0]
    )
    seqs = [line["seq"] for line in lines]
    assert seqs == sorted(set(seqs))
    with log.open("rb") as file:
        topics = {channel.topic for _, channel, _ in make_reader(file).iter_messages()}
    assert {"/camera/camera/image", "/camera/camera/annotations", "/camera/camera/detections"} <= topics


def test_the_log_level_filters_standard_error(built: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    log = {}
    for level in ("debug", "info", "warning"):
        config = tmp_path / f"{level}.toml"
        config.write_text(
            f'bundle = "{folder_of(built)}"\nallow_unaccepted = true\nlog_level = "{level}"\nframes = 60\n'
            f'budget.deadline_ms = 0.001\n[[cameras]]\nid = "front"\nsource = "{DRIVE}"\n'
        )
        result = run_avq("run", config)
        assert result.returncode == 0, result.stderr
        log[level] = result.stderr.splitlines()
    lines = [line.partition(" avq.daemon.events: ")[2] for line in log["debug"]]
    events = [json.loads(line) for line in lines if line]
    assert "alert_raised" in {event["kind"] for event in events}
    assert any("serving bundle" in line for line in log["info"]) and not any(
        "{" in line for line in log["info"]
    )
    assert not any("serving bundle" in line for line in log["warning"])


def test_sigterm_ends_a_run_cleanly_with_its_summary(built: tuple[Path, dict[str, Any]]) -> None:
    command = [
        sys.executable, "-c", "from avq.cli import main; main()", "run", "--bundle", str(folder_of(built)),
        "--source", DRIVE, "--allow-unaccepted", "--json",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read().splitlines()
        assert process.wait(timeout=120) == 0
    summary = json.loads(rest[-1])
    assert (
        summary["captured"] == summary["published"] + sum(summary["dropped"].values()) + summary["in_flight"]
    )


def test_a_recorded_drive_can_be_served_again(built: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    log = tmp_path / "drive.mcap"
    base = ("run", "--bundle", folder_of(built), "--allow-unaccepted", "--json")
    run_avq(*base, "--source", SLOW_DRIVE, "--frames", "10", "--log", log)
    result = run_avq(*base, "--source", log)
    assert result.returncode == 0 and json.loads(result.stdout.splitlines()[-1])["published"] == 10


def test_eval_of_a_bundle_needs_no_onnx_package(built: tuple[Path, dict[str, Any]], scenes: Path) -> None:
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "from avq.cli import main\n"
        f"sys.argv = ['avq', 'bench', {str(folder_of(built))!r}, '--frames', '10', '--json']\n"
        "main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_calibrate_shards_merge_to_the_whole_and_thresholds_need_no_inference(
    tmp_path: Path, scenes: Path
) -> None:
    base = ("calibrate", builtin_detector_path(), "--data", scenes, "--json")
    whole = json.loads(run_avq(*base, "-o", tmp_path / "whole.avqcal").stdout)
    for index in range(2):
        assert run_avq(*base, "--shard", f"{index}/2", "-o", tmp_path / f"{index}.avqcal").returncode == 0
    merged = run_avq(
        "calibrate",
        "merge",
        tmp_path / "1.avqcal",
        tmp_path / "0.avqcal",
        "-o",
        tmp_path / "m.avqcal",
        "--json",
    )
    assert json.loads(merged.stdout)["digest"] == whole["digest"]
    assert (tmp_path / "m.avqcal").read_bytes() == (tmp_path / "whole.avqcal").read_bytes()
    table = json.loads(
        run_avq(
            "calibrate", "thresholds", tmp_path / "m.avqcal", "--option", "calibrator=mse", "--json"
        ).stdout
    )
    assert table["inferences"] == 0 and len(table["tensors"]) == whole["tensors"]
