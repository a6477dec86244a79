"""``avq export`` on a real bundle: the file has the grids of the plan, and lists what it cannot express."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avq.builder.encodings import WRITTEN_VERSIONS
from avq.builder.encodings.read import read_side_file
from avq.builder.frontend.fold_input import fold_input
from avq.builder.graph.model import load_graph
from avq.bundle import PLAN_ARRAYS, PLAN_JSON, open_bundle
from avq.bundle.plan import plan_from_parts
from avq.scenes import builtin_detector_path
from avq.types import GraphView, QuantizationPlan
from tests.e2e.conftest import run_avq


def plan_of(bundle: Path) -> QuantizationPlan:
    opened = open_bundle(bundle, allow_unaccepted=True)
    return plan_from_parts(opened.read(PLAN_JSON), opened.read(PLAN_ARRAYS))


def graph_of(bundle: Path) -> GraphView:
    """The float graph that the bundle's plan is bound to."""
    opened = open_bundle(bundle, allow_unaccepted=True)
    assert opened.manifest.preprocess is not None
    return fold_input(load_graph(builtin_detector_path()), opened.manifest.preprocess).view


@pytest.mark.parametrize("version", WRITTEN_VERSIONS)
def test_encodings_hold_the_plan_of_the_bundle(
    built: tuple[Path, dict[str, Any]], version: str, tmp_path: Path
) -> None:
    bundle, _ = built
    output = tmp_path / "builtin.encodings"
    result = run_avq("export", bundle, "--format", "aimet", "--version", version, "-o", output, "--json")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    plan, graph = plan_of(bundle), graph_of(bundle)
    assert graph.digest == plan.graph_digest
    foreign = read_side_file(output, graph)
    assert not foreign.errors
    planned = {point.edge.tensor: point for point in plan.points}
    assert len(foreign.points) == len(planned) == answer["entries"]
    for point in foreign.points:
        own = planned[point.edge.tensor]
        assert point.scale.tobytes() == own.scale.tobytes()
        assert np.array_equal(point.zero_point, own.zero_point)
        assert (point.axis, point.bits, point.signed) == (own.axis, own.bits, own.signed)


def test_a_cache_of_a_plan_with_zero_points_is_refused_by_name(
    built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    bundle, _ = built
    assert not plan_of(bundle).symmetric
    result = run_avq("export", bundle, "--format", "trt-cache", "-o", tmp_path / "calib.cache")
    assert result.returncode == 2
    assert "around zero" in result.stderr and "activations=symmetric" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_wrong_format_or_version_names_the_nearest(
    built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    bundle, _ = built
    for arguments, hint in (
        (["--format", "aimmet"], "aimet"),
        (["--format", "aimet", "--version", "2"], "2.0.0"),
    ):
        result = run_avq("export", bundle, *arguments, "-o", tmp_path / "x")
        assert result.returncode == 2 and hint in result.stderr


@pytest.mark.slow
def test_inspect_shows_what_a_side_file_holds(material: Path) -> None:
    for folder, kind in (("trt_cache", "trt-cache"), ("aimet", "aimet-0.x")):
        for file in (material / folder).iterdir():
            result = run_avq("inspect", file, "--json")
            answer = json.loads(result.stdout)
            assert answer["kind"] == kind
            assert answer["entries"] and all(entry["line"] > 1 for entry in answer["entries"])
