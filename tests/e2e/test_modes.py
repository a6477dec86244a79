"""``avq run`` with a ladder: real bundles, a plugin's engine that becomes slow and fast again while it serves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from avq.bundle import MANIFEST, open_bundle, render, sealed
from avq.recording import LogReader
from tests.conftest import ROOT

FPS = 8
CONFIG = """
bundle = "slow-best.avq"
allow_unaccepted = true
[budget]
deadline_ms = 400
[[modes]]
name = "best"
[[modes]]
name = "small"
bundle = "slow-small.avq"
[[cameras]]
id = "front"
source = "scene://drive?seed=3&fps={fps}&size=320x192"
"""


def on_engine(bundle: Path, engine: str, folder: Path) -> Path:
    """A copy of the bundle whose manifest names another engine, sealed again."""
    copy = Path(shutil.copytree(bundle, folder / f"{engine}.avq"))
    manifest = open_bundle(copy, allow_unaccepted=True).manifest
    use = msgspec.structs.replace(manifest.engine, name=engine)
    manifest = sealed(msgspec.structs.replace(manifest, engine=use), manifest.parts)
    (copy / MANIFEST).write_bytes(render(manifest))
    return copy


class Vehicle:
    """A folder with a plugin installed in it, bundles for its engines, and a load that can be set."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        self.folder, self.load = folder, folder / "load"
        self.engine = open_bundle(bundle, allow_unaccepted=True).manifest.engine.name
        self.set_load(1.0)
        for engine in ("slow-best", "slow-small"):
            on_engine(bundle, engine, folder)
        shutil.copy(Path(__file__).with_name("slow_engine.py"), folder / "avq_slow.py")
        facts = folder / "avq_slow-1.0.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: avq-slow\nVersion: 1.0\n")
        (facts / "entry_points.txt").write_text("[avq]\nslow = avq_slow\n")

    def set_load(self, load: float) -> None:
        aside = self.load.with_suffix(".new")
        aside.write_text(str(load))
        aside.replace(self.load)

    def run(self, config: str, *arguments: str | Path) -> subprocess.Popen[str]:
        file = self.folder / "run.toml"
        file.write_text(config)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(self.folder), str(ROOT)]),
            "AVQ_TEST_LOAD": str(self.load),
            "AVQ_TEST_ENGINE": self.engine,
        }
        command = [
            sys.executable,
            "-c",
            "from avq.cli import main; main()",
            "run",
            file,
            *arguments,
            "--json",
        ]
        return subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )


@pytest.fixture
def vehicle(built: tuple[Path, dict[str, Any]], tmp_path: Path) -> Vehicle:
    return Vehicle(tmp_path, built[0])


def lines_of(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def in_time(
    lines: Iterator[dict[str, Any]], mode: str, frames: int, within: int = 800
) -> list[dict[str, Any]]:
    """The next lines, until ``frames`` of them in a row were served in ``mode``, none late.

    ``within`` lines, which ends a run that hangs in a mode: a busy machine makes frames late by itself.
    """
    seen: list[dict[str, Any]] = []
    for line in lines:
        assert "camera" in line, f"the run ended: {line}"
        seen.append(line)
        assert len(seen) <= within, [one["mode"] for one in seen]
        if [(one["mode"], one["late"]) for one in seen[-frames:]] == [(mode, False)] * frames:
            return seen
    raise AssertionError("the run ended early")


def late_in_a_row(lines: list[dict[str, Any]], mode: str) -> int:
    """The most late frames in a row that were served in ``mode``: the governor ends such a row, whatever made it."""
    rows = groupby(lines, key=lambda line: line["mode"] == mode and line["late"])
    return max((len(list(row)) for late, row in rows if late), default=0)


@pytest.mark.slow
def test_a_run_falls_to_cheaper_work_within_three_late_frames_and_comes_back(vehicle: Vehicle) -> None:
    log = vehicle.folder / "run.mcap"
    process = vehicle.run(CONFIG.format(fps=FPS), "--log", log)
    try:
        lines = lines_of(process)
        quick = in_time(lines, "best", 6)
        vehicle.set_load(8.0)
        slow = in_time(lines, "small", 4)
        assert late_in_a_row(slow, "best") <= 4
        vehicle.set_load(1.0)
        in_time(lines, "best", 4)
    finally:
        process.terminate()
    rest, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    summary = json.loads(rest.splitlines()[-1])
    assert summary["modes"][:3] == ["best", "small", "best"]
    assert summary["captured"] == summary["published"] + sum(summary["dropped"].values())
    assert summary["in_flight"] == 0
    changes = [event for event in summary["events"] if event["kind"] == "mode_changed"]
    assert [(event["from"], event["mode"]) for event in changes[:2]] == [("best", "small"), ("small", "best")]
    assert "frames in a row took" in changes[0]["reason"] and "'best' will take" in changes[1]["reason"]
    with LogReader(log) as reader:
        logged = [json.loads(record.data) for record in reader if record.topic == "/avq/events"]
    assert [event["reason"] for event in logged if event["kind"] == "mode_changed"] == [
        event["reason"] for event in changes
    ]
    digests = {name: open_bundle(vehicle.folder / f"slow-{name}.avq", allow_unaccepted=True).digest
               for name in ("best", "small")}  # fmt: skip
    assert all(line["bundle"] == digests[line["mode"]] for line in (*quick, *slow))


@pytest.mark.slow
def test_a_stride_drops_by_its_own_cause(vehicle: Vehicle) -> None:
    config = (
        CONFIG.format(fps=10)
        .replace("deadline_ms = 400", "deadline_ms = 1000")  # never missed: the other mode has no stride
        .replace('name = "best"', 'name = "best"\nstride = 3')
        .replace("scene://drive?", "scene://drive?frames=45&")
    )
    lines = list(lines_of(process := vehicle.run(config)))
    assert process.wait(120) == 0
    summary = lines[-1]
    assert summary["captured"] == 45 and summary["dropped"]["stride"] >= 15
    assert summary["captured"] == summary["published"] + sum(summary["dropped"].values())
    seqs = [line["seq"] for line in lines[:-1]]
    assert min(b - a for a, b in pairwise(seqs)) >= 3


@pytest.mark.slow
def test_modes_with_other_classes_are_refused_before_any_camera_is_opened(vehicle: Vehicle) -> None:
    other = vehicle.folder / "slow-small.avq"
    manifest = open_bundle(other, allow_unaccepted=True).manifest
    names = tuple(reversed(manifest.class_names))
    (other / MANIFEST).write_bytes(
        render(sealed(msgspec.structs.replace(manifest, class_names=names), manifest.parts))
    )
    process = vehicle.run(CONFIG.format(fps=FPS))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert "the mode 'small' has other classes than the serving bundle" in errors
