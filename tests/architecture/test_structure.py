"""The house rules a reader relies on: who imports whom, sizes, types, style, documented hooks."""

from __future__ import annotations

import ast
import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import avq
from avq import hookspecs

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 600
#: What a plugin may import of the project's own code.
PUBLIC = {"avq", "avq.errors", "avq.types", "avq.toolbox"}
HEAVY = {"onnx", "matplotlib", "scipy", "torch", "openvino", "onnxruntime", "faster_coco_eval", "tensorrt"}


def sources(*folders: str) -> list[Path]:
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert files, f"no Python files under {folders}"
    return files


def tool(name: str) -> str:
    """The command installed beside this interpreter."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: pip install -e '.[dev]'")
    return found


def passes(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command[1:])}\n{done.stdout[-6000:]}{done.stderr[-2000:]}"


def imported_modules(code: str) -> set[str]:
    """Top-level packages loaded after running ``code`` in a fresh interpreter."""
    script = f"{code}\nimport sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.slow
def test_the_code_is_typed() -> None:
    passes(tool("mypy"))


def test_the_code_is_in_style() -> None:
    passes(tool("ruff"), "check", "--no-cache", ".")


def test_the_code_is_formatted() -> None:
    passes(tool("ruff"), "format", "--check", "--no-cache", ".")


def test_serving_loads_no_build_library() -> None:
    assert not imported_modules("import avq.daemon") & HEAVY


def test_the_page_is_loaded_when_a_run_opens_it_only() -> None:
    assert not imported_modules("import avq.daemon, avq.serve") & {
        "starlette",
        "uvicorn",
        "prometheus_client",
    }


def test_importing_avq_loads_no_vendor() -> None:
    assert not imported_modules("import avq, avq.engines, avq.bundle, avq.compare, avq.measure") & HEAVY


def test_no_file_is_too_long_to_read() -> None:
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in sources("avq", "plugins", "tests")}
    long = {str(path.relative_to(ROOT)): count for path, count in lengths.items() if count > MAX_LINES}
    assert not long, f"more than {MAX_LINES} lines, split these by purpose: {long}"


def test_plugins_import_no_submodule_of_a_public_name() -> None:
    """The import contract sees modules; this sees ``from avq.toolbox.rounding import ...``, which it allows."""
    private = []
    for path in sources("plugins"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            private += [
                f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)} {name}"
                for name in names
                if name.split(".")[0] == "avq" and name not in PUBLIC
            ]
    assert not private, f"plugins may import {sorted(PUBLIC)}"


def test_five_import_contracts_are_kept() -> None:
    done = subprocess.run(
        [tool("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "Contracts: 5 kept, 0 broken" in done.stdout, done.stdout[-2000:]


def test_the_public_names_are_these() -> None:
    """A name a plugin relies on does not vanish unnoticed, and none is added by accident."""
    assert set(avq.__all__) >= {
        "CalibrationStats", "Decoder", "Engine", "FrameSource", "Quantizer", "Session", "Sink", "SinkType",
        "SourceType", "Workbench", "__version__", "errors", "hookimpl", "types",
    }  # fmt: skip
    assert all(hasattr(avq, name) for name in avq.__all__)
    loose = {name for name in vars(avq) if not name.startswith("_") and not inspect.ismodule(vars(avq)[name])}
    assert loose - {"annotations"} <= set(avq.__all__)


def hooks() -> list[str]:
    return [name for name, value in vars(hookspecs).items() if hasattr(value, "avq_spec")]


def test_every_hook_is_documented_and_exported() -> None:
    assert len(hooks()) >= 9
    for name in hooks():
        text = inspect.getdoc(getattr(hookspecs, name)) or ""
        assert len(text) > 25 and text.endswith("."), f"{name} needs a docstring that says when it is called"
        assert name.startswith("avq_") and name in hookspecs.__all__


def test_the_root_holds_the_planned_entries_only() -> None:
    planned = {"avq", "plugins", "calibration_data", "launch", "tests", "docs", "pyproject.toml", "README.md"}
    planned |= {"LICENSE", "CHANGELOG.md"}
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split("\0")
    if listed == [""]:
        pytest.skip("not a git checkout: the files that belong to the project cannot be told from others")
    top = {name.split("/")[0] for name in listed if name}
    assert {name for name in top if not name.startswith(".")} <= planned
