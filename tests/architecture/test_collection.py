"""Every test file is collected by pytest, whatever its folder is called."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def has_test(path: Path) -> bool:
    """True if the file defines a test function, alone or in a test class."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return any(isinstance(node, functions) and node.name.startswith("test") for node in ast.walk(tree))


def collected_files(root: Path) -> set[Path]:
    """The files that pytest collects below ``root``/tests with the project's own settings."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return {root / line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}


def missing_files(root: Path) -> list[str]:
    """Test files below ``root``/tests that pytest would never run, as paths relative to ``root``."""
    tests = {path for path in (root / "tests").rglob("test_*.py") if has_test(path)}
    assert tests, "no test files"
    return sorted(str(path.relative_to(root)) for path in tests - collected_files(root))


@pytest.mark.slow
def test_every_test_file_is_collected() -> None:
    assert missing_files(ROOT) == []


@pytest.mark.slow
def test_folders_that_pytest_skips_by_default_are_collected(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in ("build", "dist", "venv", "node_modules", "plain"):
        (tmp_path / "tests" / name).mkdir(parents=True)
        (tmp_path / "tests" / name / "test_one.py").write_text("def test_one():\n    assert 1 + 1 == 2\n")
    assert missing_files(tmp_path) == []


@pytest.mark.slow
def test_a_file_that_is_not_collected_is_reported(tmp_path: Path) -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    ours = 'norecursedirs = [".*"]'
    assert ours in text
    (tmp_path / "pyproject.toml").write_text(text.replace(ours, 'norecursedirs = [".*", "build"]'))
    for name in ("build", "plain"):
        (tmp_path / "tests" / name).mkdir(parents=True)
        (tmp_path / "tests" / name / "test_one.py").write_text("def test_one():\n    assert 1 + 1 == 2\n")
    assert missing_files(tmp_path) == ["tests/build/test_one.py"]
