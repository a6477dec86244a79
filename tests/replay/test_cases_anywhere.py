"""``pytest --avq-cases DIR`` as somebody with avq installed runs it: in any folder, on cases anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from avq.replay.pytest_plugin import _below, _report_folder
from tests.replay.bundle_kit import write_real_bundle

OWN_PROJECT = """
[project]
name = "car"
version = "1"

[tool.pytest.ini_options]
testpaths = ["checks"]
addopts = "-ra --strict-markers"
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_real_bundle(tmp_path_factory.mktemp("bundles") / "float.avq")


@pytest.fixture
def elsewhere(bundle: Any, tmp_path: Path) -> Any:
    """A project whose conftest.py only works in its own root folder, with two cases inside."""
    project = tmp_path / "elsewhere"
    write_cases(project / "tests" / "cases", bundle)
    (project / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')
    (project / "helpers_of_elsewhere.py").write_text("")
    (project / "tests" / "conftest.py").write_text("import helpers_of_elsewhere\n")
    return project


def write_cases(folder: Path, bundle: Path) -> None:
    for name in ("day", "night"):
        (folder / name).mkdir(parents=True)
        (folder / name / "case.toml").write_text(
            f'log = "scene://drive?seed=1&weather={name}&frames=2"\nbundle = "{bundle}"\nbaseline = "{bundle}"\n'
        )


def run_pytest(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    unwanted = ("PYTEST_", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-v", *map(str, arguments)],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip


def passed(done: subprocess.CompletedProcess[str], count: int) -> bool:
    assert f" {count} passed" in done.stdout, done.stdout + done.stderr
    return done.returncode == 0


def collected(*arguments: str, cwd: Path) -> list[str]:
    done = run_pytest(*arguments, "--collect-only", "-qq", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if "::" in line]


@pytest.mark.slow
def test_an_empty_folder_with_cases_of_its_own(bundle: Any, tmp_path: Path) -> None:
    write_cases(tmp_path / "cases", bundle)
    assert passed(run_pytest("--avq-cases", "cases/", "-n", "2", cwd=tmp_path), 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ini", "xdist"), [("", ()), (OWN_PROJECT, ("-n", "2"))], ids=["no pyproject", "own pyproject, xdist"]
)
def test_the_cases_of_another_project(
    elsewhere: Any, bundle: Any, tmp_path: Path, ini: Any, xdist: Any
) -> None:
    """Two folders: pytest roots itself in the current one, and knows no setting of the other project."""
    car = tmp_path / "car"
    write_cases(car / "cases", bundle)
    if ini:
        (car / "pyproject.toml").write_text(ini)
    folders = (f"--avq-cases={elsewhere}/tests/cases", "--avq-cases=cases")
    assert passed(run_pytest(*folders, *xdist, cwd=car), 4)


@pytest.mark.slow
def test_cases_beside_the_tests_of_the_project(tmp_path: Path) -> None:
    write_cases(tmp_path / "checks" / "cases", Path("none.avq"))
    (tmp_path / "pyproject.toml").write_text(OWN_PROJECT)
    (tmp_path / "checks" / "test_own.py").write_text("def test_own():\n    pass\n")
    own, cases = "checks/test_own.py::test_own", ("--avq-cases", "checks/cases")
    day, night = (f"checks/cases/{name}/case.toml::{name}" for name in ("day", "night"))
    assert collected(*cases, cwd=tmp_path) == [day, night], "nobody named the other tests"
    assert collected("checks", *cases, cwd=tmp_path) == [own, day, night]
    assert collected(*cases, "--ignore", "checks/cases/day", cwd=tmp_path) == [night]
    assert collected(cwd=tmp_path) == [own], "without the flag a case is a file like any other"


def test_a_case_is_run_once(tmp_path: Path) -> None:
    write_cases(tmp_path / "cases", Path("none.avq"))
    folders = ("--avq-cases", "cases", "--avq-cases", "cases/day", "--avq-cases", "cases/day/case.toml")
    assert collected(*folders, cwd=tmp_path) == ["cases/day/case.toml::day", "cases/night/case.toml::night"]


def test_links_that_lead_back_are_followed_once(tmp_path: Path) -> None:
    write_cases(tmp_path / "cases", tmp_path / "no.avq")
    for name in ("a", "b"):
        (tmp_path / "cases" / name).symlink_to(".")
    config: Any = SimpleNamespace(
        hook=SimpleNamespace(pytest_ignore_collect=lambda collection_path, config: None)
    )
    found = [path.relative_to(tmp_path).as_posix() for path in _below(tmp_path / "cases", config)]
    assert sorted(found) == ["cases/day/case.toml", "cases/night/case.toml"]


def test_cases_of_one_name_have_reports_of_their_own(tmp_path: Path) -> None:
    class Config:
        invocation_params = SimpleNamespace(dir=tmp_path)

        def __init__(self, *folders: str) -> None:
            self.options = {"--avq-cases": folders, "--avq-report": "rep"}

        def getoption(self, name: str) -> Any:
            return self.options[name]

    def folder(path: str, *folders: str) -> str:
        config: Any = Config(*folders)
        return _report_folder(tmp_path / path / "case.toml", config).as_posix()

    assert folder("cases/front", "cases") == "rep"
    assert folder("cases/dup1/front", "cases") == "rep/dup1"
    assert folder("cases/dup2/front", "cases") == "rep/dup2"
    assert folder("x/front", "x", "y/x") != folder("y/x/front", "x", "y/x")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = run_pytest("--avq-cases", "cases", cwd=tmp_path)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"the folder {tmp_path / 'cases'} does not exist" in done.stderr
