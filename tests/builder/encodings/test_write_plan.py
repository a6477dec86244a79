"""A plan over the built-in detector as a side file, with what the lowered model knows, and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from avq.builder.encodings.read import read_side_file
from avq.builder.encodings.write import Lowered, cache_header, inspect_lowered, plan_as_aimet, plan_as_cache
from avq.builder.frontend.fold_input import fold_input
from avq.builder.graph.model import FloatModel, load_graph
from avq.builder.lower import lower
from avq.errors import PlanError, RequestError
from avq.preprocess import spec_from_json
from avq.scenes import builtin_detector_path
from avq.toolbox import activation_edges, activation_point, place, weight_point
from avq.types import Edge, NodePrecision, QuantizationPlan, Range


@pytest.fixture(scope="module")
def folded() -> FloatModel:
    model = load_graph(builtin_detector_path())
    return fold_input(model, spec_from_json(model.view.metadata["avq.preprocess"]))


def planned(model: FloatModel, *, symmetric: bool) -> QuantizationPlan:
    """Every weighted operator in INT8, with ranges of some size."""
    graph, placements = model.view, place(model.view)
    edges = activation_edges(graph, placements)
    size = {tensor: 1.0 + n / 7 for n, tensor in enumerate(sorted({edge.tensor for edge in edges}))}
    points = [
        activation_point(e, Range(-size[e.tensor] / 3, size[e.tensor]), symmetric=symmetric) for e in edges
    ]
    points += [
        weight_point(p.weight, graph.constants[p.weight.tensor], p.weight_axis)
        for p in placements
        if p.weight
    ]
    return QuantizationPlan(graph.digest, tuple(sorted(points, key=lambda p: p.edge)))


def lowered(model: FloatModel, plan: QuantizationPlan) -> Lowered:
    return inspect_lowered(lower(model.proto, plan, "s8" if plan.symmetric else "asymmetric"), plan)


def test_the_lowered_model_tells_weights_from_activations(folded: FloatModel) -> None:
    plan = planned(folded, symmetric=True)
    seen = lowered(folded, plan)
    assert seen.weights == {p.edge.tensor for p in plan.points} & folded.view.constants.keys()
    assert seen.picture == ("images_mul", "images")
    for tensor in seen.partly:
        readers = folded.view.consumers(tensor)
        assert any(plan.point_for(tensor, node.name, index) is None for node, index in readers)


def test_fp16_beside_int8_changes_nothing_of_what_is_told(folded: FloatModel) -> None:
    """A bundle for TensorRT holds its activations in FP16, under other names: they are no weights for that."""
    plan = planned(folded, symmetric=True)
    quantized = {point.edge.node for point in plan.points}
    halves = {
        node.name: NodePrecision("int8", "", "fp16") if node.name in quantized else NodePrecision("fp16", "")
        for node in folded.view.nodes
    }
    beside = replace(plan, precisions=halves)
    assert lower(folded.proto, plan, "s8") != lower(folded.proto, beside, "s8")
    assert lowered(folded, beside) == lowered(folded, plan)
    activations = {point.edge.tensor for point in plan.points} - folded.view.constants.keys()
    assert plan_as_cache(beside, lowered(folded, beside), cache_header(None)).entries == len(activations)


def test_a_cache_gives_the_same_points_on_the_same_edges(folded: FloatModel, tmp_path: Path) -> None:
    plan = planned(folded, symmetric=True)
    written = plan_as_cache(plan, lowered(folded, plan), cache_header("100300"))
    path = tmp_path / "calib.cache"
    path.write_bytes(written.data)
    assert written.data.startswith(b"TRT-100300-EntropyCalibration2\n") and b"\nimages: " in written.data
    again = {point.edge: point for point in read_side_file(path, folded.view).points}
    assert again.keys() == plan.by_edge.keys()
    for edge, point in plan.by_edge.items():
        assert again[edge].settings() == point.settings()
        assert again[edge].scale.tobytes() == point.scale.tobytes()


@pytest.mark.parametrize("version", ["0.6.1", "1.0.0", "2.0.0"])
def test_encodings_give_the_same_grids_by_tensor(folded: FloatModel, version: str, tmp_path: Path) -> None:
    plan = planned(folded, symmetric=False)
    seen = lowered(folded, plan)
    written = plan_as_aimet(plan, seen, version)
    path = tmp_path / "m.encodings"
    path.write_bytes(written.data)
    foreign = read_side_file(path, folded.view)
    assert not [f for f in foreign.findings if f.code >= "AVQ-Q50"]
    by_tensor = {p.edge.tensor: p for p in plan.points}
    assert {p.edge.tensor for p in foreign.points} == by_tensor.keys()
    for point in foreign.points:
        own = by_tensor[point.edge.tensor]
        assert replace(point, edge=own.edge).settings() == own.settings()
        assert point.scale.tobytes() == own.scale.tobytes()
        assert np.array_equal(point.zero_point, own.zero_point)
    partly = [names for why, names in written.omitted.items() if "every reader" in why]
    assert set(*partly) == seen.partly


def test_what_a_cache_cannot_express_is_refused_by_name(folded: FloatModel) -> None:
    plan = planned(folded, symmetric=False)
    with pytest.raises(PlanError, match="20 grids") as error:
        plan_as_cache(plan, lowered(folded, plan), cache_header(None))
    assert "images" in error.value.seen
    edge = Edge("x")
    wide = activation_point(edge, Range(-1, 1), bits=16)
    for point in (wide, replace(wide, bits=8, mode="dynamic")):
        with pytest.raises(PlanError):
            plan_as_cache(QuantizationPlan("", (point,)), Lowered(), cache_header(None))


def test_replaced_weights_and_biases_are_told_apart(folded: FloatModel) -> None:
    plan = planned(folded, symmetric=True)
    constants = folded.view.constants
    replaced = {name: constants[name] for name in ("stem.conv.weight", "stem.conv.bias")}
    written = plan_as_aimet(replace(plan, overrides=replaced), lowered(folded, plan), "1.0.0")
    reasons = {names[0]: why for why, names in written.omitted.items()}
    assert "equalize=off" in reasons["stem.conv.weight"]
    assert "biases" in reasons["stem.conv.bias"]


def test_readers_that_disagree_on_a_tensor_are_refused() -> None:
    one = activation_point(Edge("x", "a", 0), Range(-1, 1))
    other = activation_point(Edge("x", "b", 0), Range(-2, 2))
    with pytest.raises(PlanError, match="one grid per tensor"):
        plan_as_aimet(QuantizationPlan("", (one, other)), Lowered(), "1.0.0")


def test_unknown_versions_are_refused() -> None:
    with pytest.raises(RequestError, match=r"2\.1\.0"):
        plan_as_aimet(QuantizationPlan(""), Lowered(), "2.1.0")
    with pytest.raises(RequestError, match=r"8\.5\.1"):
        cache_header("8.5.1")
