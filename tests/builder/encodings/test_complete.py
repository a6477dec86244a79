"""A side file for a part of the model: the rest is calibrated or stays float, with a finding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from onnx import helper, numpy_helper

from avq.builder.encodings import CacheEntry, TrtCache, write_cache
from avq.builder.encodings.complete import side_file_for_plan
from avq.builder.graph.view import view_of
from avq.types import Edge, ImportedQuantization, QuantizationPlan, Range
from tests.builder.encodings.network import READ_BY_WEIGHTED, WEIGHTS, graph

VIEW = graph()


class Counted:
    """Every tensor was between -1 and 3 on the pictures."""

    def __init__(self) -> None:
        self.collected: list[str] = []

    def __call__(self, tensors: Sequence[str]) -> Counted:
        self.collected += tensors
        return self

    def range(self, tensor: str, method: str, *, symmetric: bool) -> Range:
        assert tensor in self.collected and method == "minmax"
        return Range(-3, 3) if symmetric else Range(-1, 3)


def partial(folder: Path) -> Path:
    path = folder / "calib.cache"
    entries = (CacheEntry.of("picture", 0.01), CacheEntry.of("rows", 0.5))
    path.write_bytes(write_cache(TrtCache("TRT-8501-EntropyCalibration2", entries)))
    return path


def taken(path: Path, collect: Counted | None, **more: bool) -> tuple[ImportedQuantization, QuantizationPlan]:
    foreign = side_file_for_plan(
        path, VIEW, {"matmul": "head"}, cast(Any, collect), **cast(Any, {"symmetric_only": False, **more})
    )
    return foreign, QuantizationPlan(VIEW.digest, foreign.points)


def test_what_is_not_named_is_calibrated_and_said(tmp_path: Path) -> None:
    counted = Counted()
    foreign, plan = taken(partial(tmp_path), counted)
    named = {"picture", "rows"}
    assert set(counted.collected) == set(READ_BY_WEIGHTED) - named - {"columns"}
    for point in foreign.points:
        if point.edge.tensor in WEIGHTS:
            continue
        own = {"picture": 0.01, "rows": 0.5}.get(point.edge.tensor, 3 / 127)
        assert point.symmetric and point.scale == np.float32(own)
    assert {p.edge.tensor for p in plan.points} == {*READ_BY_WEIGHTED[:-1], *WEIGHTS} - {"product.weight"}
    (incomplete,) = [finding for finding in foreign.findings if finding.code == "AVQ-Q58"]
    assert incomplete.seen == "3: deep, up, gemm_t" and "on the pictures" in incomplete.fix
    assert not foreign.errors


def test_without_pictures_it_stays_float_and_is_said(tmp_path: Path) -> None:
    foreign, plan = taken(partial(tmp_path), None)
    assert {p.edge.tensor for p in plan.points} == {"picture", "stem.weight", "rows", "columns.weight"}
    (incomplete,) = [finding for finding in foreign.findings if finding.code == "AVQ-Q58"]
    assert "add --data" in incomplete.fix


def test_a_grid_reaches_operators_behind_a_split_which_files_do_not_name(tmp_path: Path) -> None:
    """AIMET writes no encoding for what a Split gives: its values lie on the grid of what it was given."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["whole"], "first"),
        helper.make_node("Split", ["whole", "sizes"], ["kept", "half"], "split", axis=1),
        helper.make_node("Conv", ["half", "w2"], ["y"], "second"),
    ]
    weights = {
        n: rng.normal(size=s).astype(np.float32) for n, s in (("w1", (4, 3, 1, 1)), ("w2", (5, 2, 1, 1)))
    }
    constants = [numpy_helper.from_array(v, n) for n, v in {**weights, "sizes": np.array([2, 2])}.items()]
    value = helper.make_tensor_value_info
    outputs = [value("y", 1, [1, 5, 8, 8]), value("kept", 1, [1, 2, 8, 8])]
    net = helper.make_graph(nodes, "net", [value("x", 1, [1, 3, 8, 8])], outputs, constants)
    model = helper.make_model(net, opset_imports=[helper.make_opsetid("", 21)])
    view = view_of(onnx.shape_inference.infer_shapes(model))
    grid = {"enc_type": "PER_TENSOR", "dtype": "INT", "bw": 8, "is_sym": True, "offset": [-128]}
    named = {"x": 0.01, "whole": 0.25, "w1": 0.02, "w2": 0.03}
    entries = [{"name": name, "scale": [scale], **grid} for name, scale in named.items()]
    path = tmp_path / "net.encodings"
    encodings = {"version": "1.0.0", "activation_encodings": entries[:2], "param_encodings": entries[2:]}
    path.write_text(json.dumps(encodings))
    foreign = side_file_for_plan(path, view, {}, None, symmetric_only=False)
    behind = QuantizationPlan(view.digest, foreign.points).point_for("half", "second", 0)
    assert behind is not None and behind.scale == np.float32(0.25)
    assert "AVQ-Q58" not in {finding.code for finding in foreign.findings}


def test_a_cache_leaves_the_head_float(tmp_path: Path) -> None:
    path = tmp_path / "calib.cache"
    entries = tuple(CacheEntry.of(name, 0.1) for name in READ_BY_WEIGHTED)
    path.write_bytes(write_cache(TrtCache("TRT-8501-EntropyCalibration2", entries)))
    foreign, plan = taken(path, None)
    assert (
        plan.point_for("columns", "matmul", 0) is None
        and Edge("product.weight", "matmul", 1) not in plan.by_edge
    )
    assert [finding.seen for finding in foreign.findings if finding.code == "AVQ-Q60"] == ["1: matmul"]
    assert "AVQ-Q58" not in {finding.code for finding in foreign.findings}
