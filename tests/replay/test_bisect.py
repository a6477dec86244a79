"""Bisecting two plans: the culprits of mixtures, in few replays, on real bundles."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from avq.bundle import open_bundle
from avq.cli import cli
from avq.replay import ReplayRequest, bisect, replay
from avq.replay.bisect import delta_debugging
from avq.types import QuantizationPlan, QuantPoint
from tests.conftest import ROOT
from tests.replay.bundle_kit import int8_plan, write_real_bundle

DRIVE = "scene://drive?seed=5&weather=day&frames=3"
RTDETR = ROOT / "tests" / "replicas" / "rtdetr.onnx"


def avq(*arguments: str | Path, code: int = 0) -> dict:  # type: ignore[type-arg]
    result = CliRunner().invoke(cli, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


@given(
    count=st.integers(1, 300),
    causes=st.lists(st.sets(st.integers(0, 299), min_size=1, max_size=3), min_size=1, max_size=2),
)
def test_what_is_found_shows_it_and_nothing_of_it_can_be_left_out(count: Any, causes: Any) -> None:
    sets = [frozenset(number % count for number in cause) for cause in causes]
    asked = []

    def shows(taken: frozenset[int]) -> bool:
        asked.append(taken)
        return any(cause <= taken for cause in sets)

    found = frozenset(delta_debugging(range(count), shows))
    assert found in sets or any(cause <= found for cause in sets)
    assert all(not any(cause <= found - {one} for cause in sets) for one in found)
    assert len(asked) <= len(found) * (math.ceil(math.log2(count)) + 1)


def scaled(plan: QuantizationPlan, factor: float, only: str | None = None) -> QuantizationPlan:
    """Activation scales times ``factor``: of all operators, or of one."""

    def moved(point: QuantPoint) -> QuantPoint:
        hit = point.axis is None and only in (None, point.edge.node)
        return replace(point, scale=np.float32(point.scale * np.float32(factor))) if hit else point

    return replace(plan, points=tuple(moved(point) for point in plan.points))


def middle_activation(plan: QuantizationPlan) -> str:
    nodes = [p.edge.node for p in plan.points if p.axis is None and p.edge.node.endswith("Conv")]
    nodes = nodes or [p.edge.node for p in plan.points if p.axis is None and p.edge.node]
    return nodes[len(nodes) // 2]


@pytest.mark.slow
def test_one_corrupted_scale_among_sixty_groups_that_all_moved_is_found_by_halving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = int8_plan(RTDETR, everything=True)
    culprit = middle_activation(plan)
    good = write_real_bundle(tmp_path / "good.avq", plan, model=RTDETR)
    bad = write_real_bundle(tmp_path / "bad.avq", scaled(scaled(plan, 1.003), 1 / 40, culprit), model=RTDETR)
    run: list[ReplayRequest] = []

    def recorded(request: ReplayRequest, **more: Any) -> Any:
        run.append(request)
        return replay(request, **more)

    monkeypatch.setattr(bisect, "replay", recorded)
    answer = avq("bisect", DRIVE, "--good", good, "--bad", bad, "--report", tmp_path / "report")
    assert answer["groups"] >= 60 and answer["differing"] >= 60
    assert [entry["group"] for entry in answer["culprits"]] == [culprit]
    assert answer["replays"] == len(run) <= 2 * math.log2(answer["groups"])
    assert answer["culprits"][0]["differences"][0]["field"] == "scale"
    assert answer["damage"] > 0 and answer["rest"] < 0.5 * answer["damage"]
    assert answer["frame"]["frame"] in (0, 1, 2) and answer["frame"]["badness"] > 0
    assert "report.html" in {path.name for path in (tmp_path / "report").iterdir()}


def test_plans_that_answer_alike_have_no_culprit(tmp_path: Path) -> None:
    good = write_real_bundle(tmp_path / "good.avq", int8_plan())
    answer = avq("bisect", DRIVE, "--good", good, "--bad", good)
    assert (answer["differing"], answer["culprits"], answer["damage"], answer["frame"]) == (0, [], 0.0, None)


@pytest.mark.slow
def test_a_difference_outside_of_the_plans_is_named(tmp_path: Path) -> None:
    good = write_real_bundle(tmp_path / "good.avq")
    bad = write_real_bundle(tmp_path / "bad.avq", resize="stretch")
    answer = avq("bisect", DRIVE, "--good", good, "--bad", bad, code=1)
    assert answer["outside"] == ["preprocess"] and answer["outside_damage"] > 0
    assert "preprocess" in answer["headline"] and answer["damage"] == 0


@pytest.mark.slow
def test_against_the_float_bundle_groups_that_were_quantized_are_named(tmp_path: Path) -> None:
    good = write_real_bundle(tmp_path / "float.avq")
    culprit = middle_activation(int8_plan())
    bad = write_real_bundle(tmp_path / "bad.avq", scaled(int8_plan(), 1 / 60, culprit))
    answer = avq("bisect", DRIVE, "--good", good, "--bad", bad)
    assert culprit in {entry["group"] for entry in answer["culprits"]}
    fields = {row["field"] for entry in answer["culprits"] for row in entry["differences"]}
    assert fields == {"quantizer", "precision"}


def test_bundles_of_other_networks_cannot_be_exchanged(tmp_path: Path) -> None:
    good = write_real_bundle(tmp_path / "good.avq", int8_plan())
    other = write_real_bundle(tmp_path / "other.avq", model=RTDETR)
    problem = avq("bisect", DRIVE, "--good", good, "--bad", other, code=2)["error"]
    assert (
        open_bundle(good).manifest.graph_digest[:12] in problem["seen"]
        and "same float model" in problem["fix"]
    )


def test_missing_bundles_and_logs_are_named(tmp_path: Path) -> None:
    good = write_real_bundle(tmp_path / "good.avq", int8_plan())
    bad = write_real_bundle(tmp_path / "bad.avq", scaled(int8_plan(), 1.5))
    assert (
        "none.avq"
        in avq("bisect", DRIVE, "--good", good, "--bad", tmp_path / "none.avq", code=2)["error"]["what"]
    )
    assert (
        "none.mcap"
        in avq("bisect", tmp_path / "none.mcap", "--good", good, "--bad", bad, code=2)["error"]["what"]
    )
    with pytest.raises(SystemExit):
        cli.main(["bisect", DRIVE], standalone_mode=True)
