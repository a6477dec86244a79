"""An outside package: built and installed by pip, then used by the real commands."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from avq.scenes import builtin_detector_path
from tests.architecture.test_structure import PUBLIC
from tests.conftest import ROOT
from tests.e2e.conftest import CALIBRATION

PACKAGE = ROOT / "tests" / "outside_plugin"
pytestmark = pytest.mark.slow  # pip installs the package, and its strategy builds


class Site:
    """A folder that pip installed the package into, and the commands of a machine that has it."""

    def __init__(self, folder: Path, journal: Path) -> None:
        self.folder = folder
        self._journal = journal

    def avq(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return self._run("-c", "from avq.cli import main; main()", *arguments)

    def contract(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return self._run("-m", "avq.contract", *arguments)

    def _run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, arguments)]
        path = os.pathsep.join(filter(None, [str(self.folder), os.environ.get("PYTHONPATH", "")]))
        environment = {**os.environ, "PYTHONPATH": path, "OUTSIDE_JOURNAL": str(self._journal)}
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, check=False, timeout=900
        )

    def calls(self, hook: str) -> list[dict[str, Any]]:
        """What the plugin's hook was called with, so far."""
        lines = self._journal.read_text().splitlines() if self._journal.exists() else []
        return [entry for entry in map(json.loads, lines) if entry["hook"] == hook]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    work = tmp_path_factory.mktemp("outside")
    source = shutil.copytree(PACKAGE, work / "source", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    where = ["--no-build-isolation", "--no-index", "--target", str(work / "site"), str(source)]
    done = subprocess.run([*pip, *where], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Site(work / "site", work / "journal.jsonl")


@pytest.fixture(scope="module")
def built(site: Site, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    bundle = tmp_path_factory.mktemp("bundles") / "outside.avq"
    result = site.avq(
        "build", builtin_detector_path(), "--data", CALIBRATION, "--strategy", "outside-margin",
        "--option", "margin=1.05", "--target", "onnxruntime", "--no-gate", "-o", bundle, "--json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return bundle, json.loads(result.stdout)


def test_the_example_imports_public_names_only() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("avq.") or node.module in PUBLIC, (
                    path,
                    node.module,
                )


def test_plugins_lists_what_was_installed(site: Site) -> None:
    result = site.avq("plugins", "--json")
    (row,) = [r for r in json.loads(result.stdout)["plugins"] if r["name"] == "outside"]
    assert (row["package"], row["version"]) == ("avq-outside", "2.1.0")
    assert row["brings"] == [
        "quantizer outside-margin",
        "engine outside-dnn",
        "source scheme ramp",
        "sink scheme tally",
    ]
    assert set(row["hooks"]) >= {
        "avq_keep_float",
        "avq_check_bundle",
        "avq_build_finished",
        "avq_budget_missed",
    }


def test_its_strategy_builds_a_bundle(site: Site, built: tuple[Path, dict[str, Any]]) -> None:
    bundle, answer = built
    assert answer["strategy"] == "outside-margin"
    assert answer["int8_mac_share"] > 0.5
    assert answer["chosen"]["lost"] <= 0.05
    shown = json.loads(site.avq("inspect", bundle, "--json").stdout)
    assert shown["plan"]["precisions"]["int8"] > 10


def test_its_strategy_keeps_the_contract_where_it_is_installed(site: Site) -> None:
    done = site.contract("--quantizer", "outside-margin", "--option", "margin=1.05", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["features"] == ["ImportingQuantizer", "LimitedQuantizer", "EncodingsOptions"]
    plans = answer["plans"]
    assert set(plans) == {"cpu", "tensorrt"} and plans["tensorrt"]["int8_nodes"] > 10


@pytest.mark.parametrize(
    ("flags", "features"),
    [
        (("--engine", "outside-dnn"), {"CompilingEngine", "ProfilingEngine", "PlannedSession"}),
        (("--source", "ramp://64x48?frames=12"), {"LiveSourceType", "UriChecker", "FileSource"}),
        (
            ("--sink", "tally:FOLDER/boxes.txt"),
            {"UriChecker", "TimingSink", "EventSink", "AlertSource", "ReportingSink"},
        ),
    ],
)
def test_its_optional_protocols_keep_the_contract(
    site: Site, tmp_path: Path, flags: tuple[str, str], features: set[str]
) -> None:
    done = site.contract(flags[0], flags[1].replace("FOLDER", str(tmp_path)), "--json")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["features"]) == features


def test_its_refused_target_is_refused(site: Site, tmp_path: Path) -> None:
    result = site.avq(
        "build", builtin_detector_path(), "--data", CALIBRATION, "--strategy", "outside-margin",
        "--target", "tensorrt-rtx", "-o", tmp_path / "b", "--json",
    )  # fmt: skip
    assert result.returncode == 2
    assert "margin" in json.loads(result.stdout)["error"]["seen"]


def test_a_wrong_option_is_refused_before_anything_is_read(site: Site, tmp_path: Path) -> None:
    result = site.avq(
        "build", builtin_detector_path(), "--data", CALIBRATION, "--strategy", "outside-margin",
        "--option", "margn=2", "-o", tmp_path / "b", "--json",
    )  # fmt: skip
    assert result.returncode == 2
    assert "did you mean 'margin'" in json.loads(result.stdout)["error"]["fix"]


def test_its_source_feeds_a_run_and_its_sink_is_written(
    site: Site, built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    tally, config = tmp_path / "boxes.txt", tmp_path / "run.toml"
    config.write_text(
        f'bundle = "{built[0]}"\nallow_unaccepted = true\n'
        '[[cameras]]\nid = "front"\nsource = "ramp://320x192?frames=12"\n'
        f'[[sinks]]\nuri = "tally:{tally}"\n'
    )
    result = site.avq("run", config, "--json")
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout.splitlines()[-1])
    assert (summary["captured"], summary["published"], summary["dropped"]) == (12, 12, {})
    (sink,) = [row for row in summary["sinks"] if row["name"] == "TallySink"]
    assert sink["lines"] == 12 and sink["last_infer_us"] > 0 and sink["events"] >= 1
    lines = tally.read_text().splitlines()
    assert [line.split()[:2] for line in lines] == [["front", str(seq)] for seq in range(12)]
    assert all(line.split()[2].startswith("boxes=") for line in lines)


def test_its_source_says_what_is_wrong_from_inside_the_capture_process(
    site: Site, built: tuple[Path, dict[str, Any]]
) -> None:
    result = site.avq("run", "--bundle", built[0], "--allow-unaccepted", "--source", "ramp://wide", "--json")
    assert result.returncode == 2
    assert json.loads(result.stdout)["error"]["fix"] == "ramp://640x360?frames=30"


def test_its_hooks_were_called_by_the_build(site: Site, built: tuple[Path, dict[str, Any]]) -> None:
    bundle, answer = built
    kept = json.dumps(json.loads((bundle / "plan.json").read_bytes()))
    assert "the first layer reads the whole range of the camera" in kept
    assert any("info outside-size: the bundle fits" in reason for reason in answer["reasons"])
    assert [entry["bundle"] for entry in site.calls("build_finished")] == [str(bundle)]


def test_it_hears_of_a_missed_budget(site: Site, built: tuple[Path, dict[str, Any]]) -> None:
    before = len(site.calls("budget_missed"))
    result = site.avq(
        "run", "--bundle", built[0], "--allow-unaccepted", "--source", "ramp://320x192?frames=40",
        "--deadline-ms", "0.001", "--json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (event,) = site.calls("budget_missed")[before:]
    assert event["kind"] == "alert_raised"
    assert event["camera"] == "camera"
