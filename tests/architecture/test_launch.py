"""The two commands of a fresh checkout: there, runnable, and clear where they cannot work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ["launch/demo", "launch/test", ".ci/run"]
#: What the scripts use besides Python.
TOOLS = ("bash", "env", "dirname", "readlink", "cksum", "cat", "mkdir", "flock", "tail", "tee")


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_executable_and_parse(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)
    done = subprocess.run(["bash", "-n", ROOT / name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a space in its name, as far as the scripts look at it."""
    folder = tmp_path / "my checkout"
    shutil.copytree(ROOT / "launch", folder / "launch")
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.mark.parametrize("name", ["demo", "test"])
def test_without_a_python_the_scripts_say_what_is_needed(checkout: Path, tmp_path: Path, name: str) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        if found:
            (tools / tool).symlink_to(found)
    done = subprocess.run(
        [checkout / "launch" / name],
        cwd="/",
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "Python 3.10 or newer" in done.stderr and "AVQ_PYTHON" in done.stderr


def test_a_prepared_environment_is_used_as_it_is(checkout: Path) -> None:
    """No package index is used when pyproject.toml is unchanged: the arguments reach pytest in its interpreter."""
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\n[ "$1" = -c ] || echo "python $*"\n')
    python.chmod(0o755)
    sums = subprocess.run(
        "cksum <pyproject.toml", shell=True, cwd=checkout, capture_output=True, text=True, check=True
    ).stdout.strip()
    extras = (checkout / "launch" / "test").read_text().split("prepare_environment ")[1].split()[0]
    stamp = checkout / ".venv" / f".installed-{extras.replace(',', '-')}"
    stamp.write_text(f"{sums} {checkout.resolve()}\n")
    for arguments, passed_on in (
        (["-k", "one thing"], "-k one thing"),
        (["--quick"], "-m not slow"),
        (["--quick", "-x"], "-m not slow -x"),
    ):
        command: list[str | Path] = [checkout / "launch" / "test", *arguments]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"python -m pytest -n 3 --dist loadfile {passed_on}\n"


def test_the_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text


def test_the_service_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("no systemd here")
    unit = tmp_path / "avq.service"
    text = (ROOT / "launch" / "avq.service").read_text()
    unit.write_text(text.replace("/opt/avq/bin/avq", "/bin/true"))  # the only path it must find
    done = subprocess.run([tool, "verify", unit], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    # systemd before 254 ignores these, and says so.
    newer = re.compile(r"Unknown key (name )?'Restart(Steps|MaxDelaySec)'")
    assert (done.returncode, [line for line in lines if not newer.search(line)]) == (0, [])


def test_what_the_service_and_the_image_install_exists() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = set(tomllib.load(file)["project"]["optional-dependencies"])
    unit = (ROOT / "launch" / "avq.service").read_text()
    image = (ROOT / "launch" / "Dockerfile").read_text().replace("${ENGINE}", "onnxruntime,openvino,tensorrt")
    for text in (unit, image):
        (names,) = re.findall(r'pip install .*"(?:avq|\.)\[([a-z,]+)\]"', text)
        assert set(names.split(",")) <= extras
    assert (
        ROOT / "launch" / "front-camera.toml"
    ).exists() and "launch/front-camera.toml /etc/avq/run.toml" in unit


def test_the_image_copies_what_the_package_needs() -> None:
    lines = (ROOT / "launch" / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") and "--from" not in line
              for name in line.split()[1:-1]]  # fmt: skip
    assert copied and all((ROOT / name).exists() for name in copied)
    assert {"pyproject.toml", "README.md", "LICENSE", "avq", "plugins"} <= set(copied)
