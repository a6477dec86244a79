"""The README's commands, run as written on files of the names it uses."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import pytest

from avq.scenes import Drive, builtin_detector_path
from avq.scenes.dataset import write_labelled_set
from tests.conftest import PRODUCTS_SATURATE, ROOT
from tests.e2e.conftest import CALIBRATION, run_avq
from tests.e2e.resealing import resealed

README = (ROOT / "README.md").read_text()
# What no machine of the tests has: the command must say so and end, not hang.
ABSENT = ("v4l2://", "rtsp://")


def commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("avq ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the README's commands name."""
    made = tmp_path_factory.mktemp("readme")
    shutil.copy(builtin_detector_path(), made / "detector.onnx")
    shutil.copytree(CALIBRATION, made / "pictures")
    write_labelled_set(made / "street", seeds=range(4_100_000, 4_100_012), ignore_below_px=32)
    labels = json.loads((made / "street" / "labels.json").read_text())
    for category in labels["categories"]:
        category["name"] = {"car": "vehicle", "truck": "bicycle rack"}.get(category["name"], category["name"])
    (made / "street.json").write_text(json.dumps(labels))
    write_drive(made / "drive.mp4")
    return made


def write_drive(path: Path) -> None:
    drive = Drive(seed=9, weather="day")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 30.0, (640, 360))
    for index in range(12):
        writer.write(drive.frame(index).pixels)
    writer.release()


def test_the_readme_has_commands_to_run() -> None:
    assert {arguments[0] for arguments in commands()} >= {"build", "eval", "bench", "inspect", "run"}


@pytest.mark.slow
def test_every_command_runs_as_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with ThreadPoolExecutor() as waiting:
        absent: list[Any] = []
        for arguments in commands():
            if _needs_what_is_absent(arguments):  # waits half a minute for its camera, in a folder of its own
                alone = Path(shutil.copytree("my.avq", f"alone-{len(absent)}/my.avq")).parent
                absent.append((arguments, waiting.submit(run_avq, *arguments, cwd=alone)))
                continue
            result = run_avq(*arguments)
            if arguments[0] == "build" and result.returncode == 1:
                result = _built_for_another_machine(arguments, result)
            assert result.returncode == 0, _failure(arguments, result)
    assert absent
    for arguments, refused in absent:
        result = refused.result()
        assert result.returncode in (2, 3) and "do:" in result.stderr, _failure(arguments, result)


def _built_for_another_machine(
    arguments: list[str], refused: subprocess.CompletedProcess[str]
) -> subprocess.CompletedProcess[str]:
    """Where INT8 is not shown to be as fast as float, or saturates, the gate is right to refuse: go on without."""
    output = " ".join(refused.stdout.split())
    slower = "slower than float" in output or "cannot tell whether it is slower" in output
    assert slower or (PRODUCTS_SATURATE and "lost boxes" in output), _failure(arguments, refused)
    done = run_avq(*arguments, "--no-gate")
    resealed(Path(arguments[arguments.index("-o") + 1]), accepted=True)
    return done


def _needs_what_is_absent(arguments: list[str]) -> bool:
    return any(scheme in argument for scheme in ABSENT for argument in arguments)


def _failure(arguments: list[str], result: subprocess.CompletedProcess[str]) -> str:
    return f"avq {' '.join(arguments)}\n{result.stdout[-500:]}{result.stderr[-1500:]}"


def test_every_command_that_the_readme_lists_exists() -> None:
    from avq.cli import cli

    listed = re.search(r"`avq (demo \|.*?)`", README, flags=re.DOTALL)
    assert listed is not None
    assert {name.strip() for name in listed.group(1).split("|")} == set(cli.commands)
