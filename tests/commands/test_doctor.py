"""What avq doctor says, here and on poorer machines."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from avq.commands.doctor import examine, rows
from avq.engines.cpu import instruction_set
from avq.types import EngineStatus
from tests.engines.null import NullEngine

KEYS = {"name", "available", "version", "can_build", "can_run", "why"}


def test_every_target_has_a_line_with_a_reason_when_missing() -> None:
    findings = examine()
    engines = {engine["name"]: engine for engine in findings["engines"]}
    assert list(engines)[:2] == ["onnxruntime", "openvino"]
    assert {"tensorrt", "tensorrt-rtx"} <= set(engines)
    for engine in engines.values():
        assert set(engine) == KEYS
        assert engine["can_run"] or engine["why"]
        assert engine["version"] or not engine["available"]
    assert findings["isa"] == instruction_set()
    assert "static" in {plugin["name"] for plugin in findings["plugins"]}


def test_codecs_are_really_tried() -> None:
    codecs = {codec["name"].split()[0]: codec for codec in examine(engines=[])["codecs"]}
    assert set(codecs) == {"VP8", "MPEG-4"}
    assert all(codec["works"] or codec["why"] for codec in codecs.values())


def test_the_table_has_a_row_for_everything() -> None:
    findings = examine()
    table = rows(findings)
    assert {row["kind"] for row in table} == {"processor", "engine", "gpu", "codec", "plugin"}
    assert len([r for r in table if r["kind"] == "engine"]) == len(findings["engines"])


def test_an_engine_that_breaks_its_promise_becomes_a_line() -> None:
    class Raising(NullEngine):
        def status(self) -> EngineStatus:
            raise RuntimeError("driver gone")

    (line,) = [e for e in examine(engines=[Raising()])["engines"] if e["name"] == "null"]
    assert not line["can_run"]
    assert "driver gone" in line["why"]


def test_gpus_are_what_the_driver_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA Orin, 540.3.0, 30697 MiB, 8.7'\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (gpu,) = examine(engines=[])["gpus"]
    assert gpu == {
        "name": "NVIDIA Orin",
        "driver_version": "540.3.0",
        "memory_total": "30697 MiB",
        "compute_cap": "8.7",
    }
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert examine(engines=[])["gpus"] == []


def test_a_machine_with_nothing_for_gpus_gets_a_table_that_says_how_to_get_it(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "for name in ('tensorrt', 'tensorrt_rtx', 'pycuda', 'cuda', 'cuda.bindings'): sys.modules[name] = None\n"
        "from avq.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "doctor"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    output = " ".join(done.stdout.split())
    for hint in ('"avq[tensorrt]"', "tensorrt-rtx-cu12", "pycuda", "nvidia-smi finds no GPU", "avq compile"):
        assert hint in output
