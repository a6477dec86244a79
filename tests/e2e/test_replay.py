"""Replay from the command line and from pytest, on a real bundle and a record of a real run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from avq.bundle import open_bundle, staging_folder, write_bundle
from avq.replay import ReplayRequest, replay
from tests.e2e.conftest import run_avq
from tests.e2e.test_build import folder_of

KEYS = {"frames", "identical", "differences", "sha256", "seconds"}


@pytest.fixture(scope="module")
def drive(built: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flight record of 30 frames of a drawn drive, so slow that the recorder of a busy machine misses none."""
    log = tmp_path_factory.mktemp("drive") / "drive.mcap"
    done = run_avq(
        "run", "--bundle", folder_of(built), "--source", "scene://drive?seed=3&fps=10", "--frames", "30",
        "--log", log, "--allow-unaccepted", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return log


@pytest.fixture(scope="module")
def worse(built: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle looking at exchanged colours."""
    good = open_bundle(folder_of(built), allow_unaccepted=True)
    spec = good.manifest.preprocess
    assert spec is not None
    order: Any = "RGB" if spec.channel_order == "BGR" else "BGR"
    changed = msgspec.structs.replace(good.manifest, preprocess=replace(spec, channel_order=order))
    folder = tmp_path_factory.mktemp("worse") / "worse.avq"
    write_bundle(
        staging_folder(folder), folder, changed, {part: good.read(part) for part in good.manifest.parts}
    )
    return folder


def answer_of(*arguments: str | Path, code: int) -> dict[str, Any]:
    done = run_avq("replay", *arguments, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def test_a_drive_replays_bit_for_bit_and_an_accepted_reference_holds(
    built: tuple[Path, dict[str, Any]], drive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    bundle, reference = folder_of(built), tmp_path / "ref.mcap"
    alone = answer_of(drive, "--bundle", bundle, code=0)
    assert set(alone) >= KEYS and alone["frames"] == 30 and alone["identical"] is None
    assert alone["timing"] == "recorded" and alone["boxes"] > 0
    missing = answer_of(drive, "--bundle", bundle, "--baseline", reference, code=2)
    assert "--accept" in missing["error"]["fix"]
    accepted = answer_of(drive, "--bundle", bundle, "--baseline", reference, "--accept", code=0)
    assert accepted["sha256"] == alone["sha256"] and reference.is_file()
    held = answer_of(drive, "--bundle", bundle, "--baseline", reference, code=0)
    assert held["identical"] is True and held["differences"] == [] and held["tier"] == "exact"
    other = answer_of(drive, "--bundle", bundle, "--baseline", reference, "--frames", "9", code=2)
    assert "another configuration" in other["error"]["what"]
    strange = answer_of("scene://drive?frames=2", "--bundle", bundle, "--baseline", reference, code=2)
    assert "another log" in strange["error"]["what"]


def test_nothing_is_accepted_under_ci(
    built: tuple[Path, dict[str, Any]], drive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    answer = answer_of(
        drive, "--bundle", folder_of(built), "--baseline", tmp_path / "r.mcap", "--accept", code=2
    )
    assert "CI" in answer["error"]["what"] and not (tmp_path / "r.mcap").exists()


def test_a_worse_bundle_is_named_with_its_classes_sizes_and_frames(
    built: tuple[Path, dict[str, Any]], drive: Path, worse: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report"
    answer = answer_of(
        drive, "--bundle", worse, "--baseline", folder_of(built), "--report", report, code=1
    )  # fmt: skip
    assert answer["identical"] is False and answer["tier"] == "metric"
    assert all({"frame", "camera", "field"} <= set(row) for row in answer["differences"])
    assert any(row["lost"] > 0 and row["class"] != "all" for row in answer["suffering"])
    assert answer["stages"][-1]["stage"] == "total" and answer["stages"][-1]["ratio"] > 0
    page = (report / "report.html").read_text()
    assert page.count("data:image/jpeg") >= 4 and len(page.encode()) < 3_000_000
    comment = (report / "diff.md").read_text()
    assert f"{len(answer['differences'])} differences" in comment and len(comment) < 65_536
    topics = {channel for channel, *_ in _channels(report / "both.mcap")}
    assert {"/camera/camera/image", "/camera/camera/reference", "/camera/camera/replay"} <= topics


def test_five_runs_and_one_core_give_the_same_bits(built: tuple[Path, dict[str, Any]], drive: Path) -> None:
    request = ReplayRequest(str(drive), folder_of(built))
    runs = [replay(request) for _ in range(4)]
    digests = {(run.sha256, run.decisions_sha256) for run in runs}
    assert len(digests) == 1
    code = (
        "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from pathlib import Path; from avq.replay import ReplayRequest, replay\n"
        "run = replay(ReplayRequest(sys.argv[1], Path(sys.argv[2])))\n"
        "print(run.sha256, run.decisions_sha256)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(drive), str(folder_of(built))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert tuple(done.stdout.split()) in digests, done.stderr


def test_pytest_runs_case_folders(
    built: tuple[Path, dict[str, Any]], drive: Path, worse: Path, tmp_path: Path
) -> None:
    cases = tmp_path / "cases"
    for name, bundle in (("good", folder_of(built)), ("worse", worse)):
        (cases / name).mkdir(parents=True)
        (cases / name / "case.toml").write_text(
            f'log = "{drive}"\nbundle = "{bundle}"\nbaseline = "{folder_of(built)}"\n'
            "[timing.limits_ms]\ntotal_mean_ms = 60000.0\n"
        )
    (cases / "away").mkdir()
    (cases / "away" / "case.toml").write_text(
        f'log = "nowhere.mcap"\nbundle = "{folder_of(built)}"\noptional = true\n'
    )
    done = run_pytest("--avq-cases", cases, "-n", "2", "--dist", "load", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 1 passed, 1 skipped" in done.stdout
    assert "differences in" in done.stdout and "avq-report/worse/report.html" in done.stdout
    assert (tmp_path / "avq-report" / "worse" / "report.html").is_file()
    (cases / "away" / "case.toml").write_text('log = "x"\nbundel = "y"\n')
    wrong = run_pytest("--avq-cases", cases / "away", cwd=tmp_path)
    assert "case.toml:2" in wrong.stdout and "bundle" in wrong.stdout


def run_pytest(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, arguments)],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip


def _channels(path: Path) -> list[tuple[str, ...]]:
    from avq.recording import LogReader

    with LogReader(path) as log:
        return [(record.topic,) for record in log]
