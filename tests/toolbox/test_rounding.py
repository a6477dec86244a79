"""Rounding by output error and bias correction, on the built-in detector's own activations and by exhaustion."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avq.contract.workbench import on_workbench
from avq.toolbox import (
    BiasCorrection,
    Ranging,
    RoundedWeights,
    assemble,
    correct_biases,
    dequantize,
    place,
    quantize,
    round_weights,
    wanted_statistics,
    weight_point,
)
from avq.toolbox.rounding import output_error, solve
from avq.types import Edge, GraphView, MomentRequest, PlanScore, QuantizationPlan

pytest.importorskip("onnxruntime")


@dataclass(frozen=True)
class AtFourBits:
    """What the toolbox does to the built-in detector with weights of four bits."""

    graph: GraphView
    plan: QuantizationPlan
    rounded: RoundedWeights
    corrected: BiasCorrection
    scores: dict[str, PlanScore]
    mean_shift: dict[str, float]


@pytest.fixture(scope="module")
def four_bits() -> AtFourBits:
    return on_workbench(_at_four_bits)


def _at_four_bits(graph: Any, bench: Any) -> AtFourBits:
    placements = place(graph, bench.keep_float)
    stats = bench.collect(wanted_statistics(graph, placements))
    ranging = Ranging("mse", weight_bits=4)
    plan = assemble(graph, placements, stats, ranging, {}, owner=("test", "1"))
    rounded = round_weights(graph, plan, bench)
    corrected = correct_biases(graph, plan, bench)
    plans = {"nearest": plan, "rounded": replace(plan, overrides=rounded.weights)}
    scores = {name: bench.error(p, pictures=12) for name, p in plans.items()}
    node = graph.node(next(iter(corrected.shifts)))
    weights = {node.inputs[1]: _meant(graph, plan, node.inputs[1])}
    biases = {node.inputs[2]: corrected.biases[node.inputs[2]]}
    request = MomentRequest(node.outputs[0])

    def mean(overrides: Any) -> Any:
        return bench.adjusted(overrides).moments([request])[request.key] if overrides else exact

    exact = bench.moments([request])[request.key]
    shift = {
        "quantized": float(np.abs(mean(weights) - exact).mean()),
        "corrected": float(np.abs(mean({**weights, **biases}) - exact).mean()),
    }
    return AtFourBits(graph, plan, rounded, corrected, scores, shift)


def _meant(graph: Any, plan: Any, name: Any) -> Any:
    point = next(p for p in plan.points if p.edge.tensor == name)
    return dequantize(quantize(graph.constants[name], point), point)


@pytest.mark.slow
def test_bias_correction_gives_the_mean_of_a_layer_back(four_bits: AtFourBits) -> None:
    assert four_bits.mean_shift["corrected"] < 0.25 * four_bits.mean_shift["quantized"]


def test_rounding_lowers_the_output_error_of_every_layer(four_bits: AtFourBits) -> None:
    errors = four_bits.rounded.errors
    assert len(errors) == 19 and all(after <= before for before, after in errors.values())
    assert np.median([after / before for before, after in errors.values()]) < 0.3


def test_rounding_brings_the_whole_network_closer_to_float(four_bits: AtFourBits) -> None:
    before, after = (min(four_bits.scores[k].sqnr_db.values()) for k in ("nearest", "rounded"))
    assert after > before + 5.0


def test_overrides_quantize_to_neighbouring_levels_exactly(four_bits: AtFourBits) -> None:
    points = {p.edge.tensor: p for p in four_bits.plan.points}
    for name, real in four_bits.rounded.weights.items():
        point, weight = points[name], four_bits.graph.constants[name]
        integers = quantize(real, point)
        np.testing.assert_array_equal(dequantize(integers, point), real)
        scale = point.scale.reshape(-1, *[1] * (weight.ndim - 1))
        inside = np.abs(weight / scale) < point.qmax
        assert np.all(np.abs(integers - weight / scale)[inside] < 1.0 + 1e-4)


def test_every_layer_is_either_corrected_or_told_why_not(four_bits: AtFourBits) -> None:
    corrected, graph = four_bits.corrected, four_bits.graph
    weighted = {p.node for p in place(graph)} & {p.edge.node for p in four_bits.plan.points}
    assert set(corrected.shifts) | set(corrected.skipped) == weighted
    assert not set(corrected.shifts) & set(corrected.skipped)
    for name, bias in corrected.biases.items():
        assert bias.shape == graph.constants[name].shape and bias.dtype == graph.constants[name].dtype
        moved, known = np.abs(bias - graph.constants[name]), np.abs(graph.constants[name])
        assert np.all(moved <= 2.0 * known + 1e-6)


def small_layer(seed: int, inputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Errors of three output channels: nearest, chosen and the best of all roundings; and what was chosen."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(1, 3, inputs))
    samples = rng.normal(size=(50, inputs)) @ rng.normal(size=(inputs, inputs))
    gram = (samples.T @ samples / 50)[None]
    scale, zero = np.full(weights.shape, 0.3), np.zeros(weights.shape, np.int64)
    below = np.floor(weights / scale).astype(np.int64)
    nearest = np.rint(weights / scale).astype(np.int64)
    chosen = solve(weights, scale, zero, nearest, (below, below + 1), gram)
    damped = gram + 0.01 * np.trace(gram[0]) / inputs * np.eye(inputs)

    def error(integers: Any) -> Any:
        return output_error(integers * scale - weights, damped)[0]

    best = np.min([error(below + np.array(up)) for up in product((0, 1), repeat=inputs)], axis=0)
    return error(nearest), error(chosen), best, chosen - below


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), inputs=st.integers(1, 7))
def test_no_channel_is_rounded_worse_than_to_nearest_nor_beyond_its_neighbours(
    seed: Any, inputs: Any
) -> None:
    nearest, chosen, best, up = small_layer(seed, inputs)
    assert np.all(chosen <= nearest + 1e-12) and np.all(chosen >= best - 1e-12)
    assert set(np.unique(up)) <= {0, 1}


def test_most_of_what_the_best_rounding_wins_is_won() -> None:
    errors = np.array([np.stack(small_layer(seed, 7)[:3]) for seed in range(30)])
    nearest, chosen, best = errors.sum(axis=(0, 2))
    assert nearest - chosen > 0.8 * (nearest - best)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_least_squares_scales_are_closer_than_the_largest_value(bits: int) -> None:
    weight = np.random.default_rng(0).standard_t(4, size=(8, 16, 3, 3)).astype(np.float32)
    edge, error = Edge("w", "n", 1), {}
    for method in ("minmax", "mse", "auto"):
        point = weight_point(edge, weight, 0, bits=bits, method=method)
        error[method] = float(np.square(dequantize(quantize(weight, point), point) - weight).sum())
    assert error["auto"] == error["mse"] < error["minmax"]


def test_eight_bits_keep_the_largest_value() -> None:
    weight = np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32)
    point = weight_point(Edge("w", "n", 1), weight, 0)
    np.testing.assert_allclose(point.scale, np.abs(weight).max(axis=1) / 127, rtol=1e-6)
