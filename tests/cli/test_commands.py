"""The command line for people and scripts: exit codes, JSON on standard output, errors with a fix."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from avq.cli import cli


def avq(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)


@pytest.mark.parametrize(
    "command",
    [
        "demo", "doctor", "build", "calibrate", "eval", "bench", "run", "inspect", "diff", "lint", "plugins",
        "config", "log", "bisect",
    ],
)  # fmt: skip
def test_every_command_explains_itself(command: str) -> None:
    result = avq(command, "--help")
    assert result.exit_code == 0 and "Usage" in result.output


@pytest.mark.parametrize(("seconds", "code", "output"), [(60, 3, "ran\n"), (0, 5, "ran\nexited\n")])
def test_a_service_exits_with_its_code_despite_a_running_thread(seconds: int, code: int, output: str) -> None:
    program = f"""
import atexit, sys, threading, time
from avq.cli.app import exit_despite
atexit.register(print, "exited")
thread = threading.Thread(target=time.sleep, args=({seconds},), daemon=True)
thread.start()
exit_despite([thread], 3)
print("ran")
if not {seconds}:
    thread.join()
    sys.exit(5)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout) == (code, output), done.stderr


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_full_standard_output_is_an_error_of_the_machine(form: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", "from avq.cli import main; main()", "plugins", *form],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 3 and "No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_closed_standard_output_is_no_error() -> None:
    command = [sys.executable, "-c", "from avq.cli import main; main()", "plugins"]
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    done = subprocess.run(closed, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_mistyped_command_names_the_nearest() -> None:
    result = avq("biuld")
    assert result.exit_code == 2 and "did you mean 'build'" in result.output


def test_a_mistyped_flag_names_the_nearest() -> None:
    result = avq("build", "m.onnx", "--stratgy", "static")
    assert result.exit_code == 2 and "--strategy" in result.output


def test_doctor_answers_on_any_machine() -> None:
    result = avq("doctor", "--json")
    answer = json.loads(result.stdout)
    assert result.exit_code == 0
    assert {"name", "available", "version", "can_build", "can_run", "why"} <= set(answer["engines"][0])
    assert {"engines", "gpus", "plugins"} <= set(answer)


def test_the_static_strategy_is_a_plugin_with_options_people_can_read() -> None:
    listing = json.loads(avq("plugins", "--json").stdout)["plugins"]
    text = json.dumps(listing)
    assert "static" in text and "calibrator" in text


def test_plugins_are_a_table_with_types_and_defaults_for_people() -> None:
    output = avq("plugins").stdout
    assert "[" not in output and "{" not in output
    assert "auto | entropy | mse | percentile | minmax" in output
    assert all(word in output for word in ("version", "owner", "hooks", "avq_register_quantizers", "99.99"))


def problem(result: Result) -> dict[str, str]:
    return json.loads(result.stdout)["error"]


def test_a_missing_model_is_a_wrong_request(tmp_path: Path) -> None:
    result = avq("build", tmp_path / "none.onnx", "--data", tmp_path, "-o", tmp_path / "b", "--json")
    assert result.exit_code == 2
    assert "none.onnx" in problem(result)["what"] and problem(result)["fix"]


def test_a_build_without_pictures_says_which_flag(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not onnx")
    result = avq("build", tmp_path / "m.onnx", "-o", tmp_path / "b", "--json")
    assert result.exit_code == 2 and "--data" in problem(result)["fix"]


ROAD_SCENES = Path(__file__).parents[2] / "calibration_data" / "road_scenes"


@pytest.mark.parametrize("content", [b"", b"not onnx at all", b"\xff\xd8\xff\xe0 a jpeg"])
def test_a_broken_model_file_is_named(tmp_path: Path, content: bytes) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(content)
    result = avq("build", model, "--data", ROAD_SCENES, "-o", tmp_path / "b", "--json")
    assert result.exit_code == 2 and "m.onnx" in problem(result)["what"]
    assert not (tmp_path / "b").exists()


def test_an_empty_folder_of_pictures_is_named(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "m.onnx").write_bytes(b"x")
    result = avq(
        "build", tmp_path / "m.onnx", "--data", tmp_path / "pictures", "-o", tmp_path / "b", "--json"
    )
    assert result.exit_code == 2 and "holds no pictures" in problem(result)["what"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--strategy", "statik"], "static"),
        (["--target", "openvin"], "openvino"),
        (["--option", "calibratr=mse"], "calibrator"),
        (["--option", "calibrator=msee"], "mse"),
        (["--option", "calibrator"], "key=value"),
    ],
)
def test_a_wrong_choice_names_the_nearest_valid_one(tmp_path: Path, flags: Any, expected: str) -> None:
    write_picture(tmp_path / "pictures")
    (tmp_path / "m.onnx").write_bytes(b"x")
    result = avq(
        "build", tmp_path / "m.onnx", "--data", tmp_path / "pictures", "-o", tmp_path / "b", *flags, "--json"
    )
    assert result.exit_code == 2 and expected in json.dumps(problem(result))


def test_a_target_that_this_machine_cannot_build_is_code_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)  # as where it is not installed
    write_picture(tmp_path / "pictures")
    (tmp_path / "m.onnx").write_bytes(b"x")
    result = avq(
        "build", tmp_path / "m.onnx", "--data", tmp_path / "pictures", "-o", tmp_path / "b",
        "--target", "tensorrt-rtx", "--json",
    )  # fmt: skip
    assert result.exit_code == 3 and problem(result)["fix"]


def test_inspect_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    result = avq("inspect", tmp_path / "thing.xyz", "--json")
    assert result.exit_code == 2 and ".onnx" in problem(result)["fix"]


def write_picture(folder: Path) -> None:
    import cv2
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "a.png"), np.zeros((32, 48, 3), np.uint8))
