"""mypy reads the TensorRT sources with NVIDIA's API as the public package tensorrt-stubs declares it.

The sources take the module as an argument, so that doubles and TensorRT for RTX fit too; here it is made an import.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCES = (
    "tensorrt_build",
    "tensorrt_layers",
    "tensorrt_log",
    "tensorrt_calibrator",
    "gpu_session",
    "tensorrt",
)
WHEELS = Path(os.environ.get("AVQ_TENSORRT_WHEELS", "/nonexistent"))


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    wheel = next(WHEELS.glob("tensorrt_stubs-*.whl"), None)
    if wheel is None:
        pytest.skip("set AVQ_TENSORRT_WHEELS to a folder with tensorrt-stubs")
    folder = tmp_path / "stubs"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    for path in folder.rglob("*.pyi"):
        path.write_text(_mended(path.read_text(encoding="utf-8")), encoding="utf-8")
    return folder


def _mended(text: str) -> str:
    """The stubs hold a few signatures that are no Python; without them mypy reads nothing at all."""
    lines = text.split("\n")
    for _ in range(100):
        try:
            ast.parse("\n".join(lines))
            return "\n".join(lines)
        except SyntaxError as error:
            at = (error.lineno or 1) - 1
            while not re.match(r"\s*def ", lines[at]):
                at -= 1
            indent, name = re.match(r"(\s*)def (\w+)", lines[at]).groups()  # type: ignore[union-attr]
            body = " ..." if lines[at].rstrip().endswith("...") else ""
            lines[at] = f"{indent}def {name}(self, *args, **kwargs):{body}"
    raise AssertionError("too much of the stubs is no Python")


def test_every_attribute_is_one_that_the_stubs_declare(stubs: Path, tmp_path: Path) -> None:
    sources = []
    for name in SOURCES:
        text = (ROOT / "avq" / "engines" / f"{name}.py").read_text(encoding="utf-8")
        text = re.sub(r"\btrt: Any(,\s*)?", "", text)
        head = "from __future__ import annotations\n"
        sources.append(tmp_path / f"typed_{name}.py")
        sources[-1].write_text(text.replace(head, f"{head}\nimport tensorrt as trt\n", 1), encoding="utf-8")
    (tmp_path / "typed_wrong.py").write_text(
        "import tensorrt as trt\ntrt.Builder(trt.Logger()).no_such_name\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", os.devnull, "--follow-imports=silent"]
    done = subprocess.run(
        [*command, "--ignore-missing-imports", *map(str, sources), str(tmp_path / "typed_wrong.py")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": f"{stubs}:{ROOT}"},
    )
    unknown = [
        line for line in done.stdout.splitlines() if "attr-defined" in line and line.startswith("typed_")
    ]
    assert len(unknown) == 1 and "no_such_name" in unknown[0], "\n".join(unknown) or done.stdout[-2000:]
