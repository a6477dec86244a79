"""Mining: the frames that models disagree about become a set that a build takes, and nothing is written twice."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from avq.builder.pictures.dataset import open_set
from avq.cli import cli
from avq.replay.mining_rank import Frame, choose, rank
from avq.scenes import Drive
from tests.replay.bundle_kit import int8_plan, write_real_bundle
from tests.replay.test_bisect import middle_activation, scaled

DRIVE = "scene://drive?seed=5&weather=day&frames=6&fps=5"


def avq(*arguments: str | Path, code: int = 0) -> dict:  # type: ignore[type-arg]
    result = CliRunner().invoke(cli, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    plan = scaled(int8_plan(), 1 / 3, middle_activation(int8_plan()))
    return write_real_bundle(tmp_path_factory.mktemp("bundles") / "int8.avq", plan)


def frame(index: int, log: str = "a", **signals: float) -> Frame:
    return Frame(log, ("front", index), index * 100_000_000, signals)


def test_a_frame_ranks_by_its_strongest_signal_whatever_its_unit() -> None:
    frames = [frame(0, float=0.1, drift=50.0), frame(1, float=9.0, drift=1.0), frame(2, float=0.2, drift=2.0)]
    ranked = rank(frames)
    assert {row.frame.key[1] for row in ranked[:2]} == {0, 1} and ranked[2].frame.key[1] == 2
    assert {row.why for row in ranked[:2]} == {"float", "drift"}


def test_frames_without_a_signal_are_never_chosen() -> None:
    frames = [frame(0, float=0.0), frame(5), frame(9, float=0.3)]
    assert [row.frame.key[1] for row in choose(rank(frames), 10, 0)] == [9]


def test_chosen_frames_lie_apart_unless_there_are_not_enough() -> None:
    frames = [frame(i, float=100.0 - i) for i in range(20)] + [frame(0, "b", float=0.5)]
    spread = [row.frame for row in choose(rank(frames), 4, 500_000_000)]
    assert [f.key[1] for f in spread] == [0, 5, 10, 15]
    everything = choose(rank(frames), 21, 500_000_000)
    assert len(everything) == 21 and everything[-1].frame.log == "b"


def test_mined_frames_are_a_set_with_its_digests_and_sources(bundle: Any, tmp_path: Path) -> None:
    answer = avq(
        "replay",
        DRIVE,
        "--bundle",
        bundle,
        "--mine",
        tmp_path / "set",
        "--mine-count",
        "3",
        "--licence",
        "CC0-1.0",
    )
    assert answer["frames"] == 6 and answer["added"] == 3 and answer["signals"] == ["float"]
    assert [row["float"] for row in answer["mined"]] == sorted(
        (r["float"] for r in answer["mined"]), reverse=True
    )
    with (tmp_path / "set" / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "sha256", "scene", "source", "licence"]
    for row, told in zip(rows, answer["mined"], strict=True):
        data = (tmp_path / "set" / row["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"] and row["licence"] == "CC0-1.0"
        assert f"frame {told['frame']}" in row["scene"] and "float" in row["source"]
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        drawn = Drive(seed=5, weather="day", width_px=640, height_px=360, fps=5).frame(told["frame"]).pixels
        assert np.array_equal(np.asarray(pixels), np.asarray(drawn))
    assert len(open_set(tmp_path / "set").items) == 3, "avq build --data takes it"
    proposals = json.loads((tmp_path / "set" / "proposals.json").read_text())
    assert {image["file_name"] for image in proposals["images"]} == {row["file"] for row in rows}
    assert proposals["annotations"] and all(0.3 <= box["score"] <= 1 for box in proposals["annotations"])


@pytest.mark.slow
def test_mining_again_adds_only_what_is_new(bundle: Any, tmp_path: Path) -> None:
    first = avq("replay", DRIVE, "--bundle", bundle, "--mine", tmp_path / "set", "--mine-count", "2")
    again = avq("replay", DRIVE, "--bundle", bundle, "--mine", tmp_path / "set", "--mine-count", "3")
    assert (first["added"], again["added"]) == (2, 1)
    assert len(open_set(tmp_path / "set").items) == 3
    proposals = json.loads((tmp_path / "set" / "proposals.json").read_text())
    assert [image["id"] for image in proposals["images"]] == [1, 2, 3]


@pytest.mark.slow
def test_what_another_bundle_saw_on_the_road_speaks_too(bundle: Any, tmp_path: Path) -> None:
    served = write_real_bundle(tmp_path / "float.avq")
    log = tmp_path / "drive.mcap"
    run = ["run", "--bundle", str(served), "--source", f"{DRIVE}", "--every-frame", "--log", str(log)]
    assert CliRunner().invoke(cli, run).exit_code == 0
    answer = avq("replay", log, "--bundle", bundle, "--mine", tmp_path / "set", "--mine-count", "1")
    assert answer["signals"] == ["float", "recorded"] and answer["mined"][0]["recorded"] > 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--baseline", "refs"), "own float network"),
        (("--report", "r"), "second call"),
        (("--bundle", "other.avq"), "--baseline"),
    ],
)
def test_wrong_ways_to_mine_are_refused(bundle: Any, tmp_path: Path, flags: Any, said: str) -> None:
    problem = avq("replay", DRIVE, "--bundle", bundle, "--mine", tmp_path / "set", *flags, code=2)["error"]
    assert said in problem["fix"] and not (tmp_path / "set").exists()


def test_a_float_bundle_alone_has_nothing_to_disagree_with(tmp_path: Path) -> None:
    served = write_real_bundle(tmp_path / "float.avq")
    problem = avq("replay", DRIVE, "--bundle", served, "--mine", tmp_path / "set", code=2)["error"]
    assert "--baseline" in problem["fix"]


def test_a_folder_with_other_things_is_left_alone(bundle: Any, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "notes.txt").write_text("mine")
    problem = avq("replay", DRIVE, "--bundle", bundle, "--mine", tmp_path / "set", code=2)["error"]
    assert "index.csv" in problem["what"] and [p.name for p in (tmp_path / "set").iterdir()] == ["notes.txt"]
