"""Thresholds from counts: the fast searches find what the written-out loops find."""

from __future__ import annotations

import numpy as np
import pytest

from avq.builder.calibrate import ranges as thresholds
from avq.builder.calibrate.histogram import Histogram
from avq.builder.calibrate.ranges import HistogramStats
from avq.errors import CalibrationError
from avq.types import CALIBRATORS, Calibrator
from tests.builder.calibrate.threshold_reference import (
    lean_kl,
    literal_entropy,
    literal_kl,
    literal_squared_error,
    random_histograms,
    spelled_out_kl,
)


def of(values: object) -> Histogram:
    histogram = Histogram()
    histogram.add(np.asarray(values, np.float32))
    return histogram


def silu(seed: int = 0, size: int = 50_000) -> Histogram:
    x = np.random.default_rng(seed).normal(0, 3, size)
    return of(x / (1 + np.exp(-x)))


@pytest.mark.slow
def test_entropy_finds_the_threshold_of_the_loop_on_fifty_histograms() -> None:
    for kind, histogram in random_histograms(seed=5, count=50):
        expected, divergence = literal_entropy(histogram, divergence_of=lean_kl)
        found = thresholds.entropy(histogram)
        kept = int(np.ceil(found / histogram.width))
        same = found == expected or abs(divergence[kept] - min(divergence.values())) <= 1e-12
        assert same, f"{kind}: {found} instead of {expected}"


def test_the_loop_itself_computes_the_divergence_bin_by_bin() -> None:
    counts = np.random.default_rng(3).poisson(0.7, 700)
    for kept in (128, 129, 255, 300, 699, 700):
        assert literal_kl(counts, kept, 128) == pytest.approx(
            spelled_out_kl(counts.tolist(), kept, 128), abs=1e-12
        )


def test_the_lean_loop_gives_the_same_numbers() -> None:
    for _, histogram in random_histograms(seed=6, count=10):
        used = int(np.flatnonzero(histogram.magnitude)[-1]) + 1
        for kept in {128, *range(128, used, 97), used}:
            written_out = literal_kl(histogram.magnitude, kept, 128)
            assert lean_kl(histogram.magnitude, kept, 128) == pytest.approx(written_out, abs=1e-12)


@pytest.mark.parametrize("bits", [4, 6, 8, 10])
def test_divergences_equal_the_loop_for_other_widths(bits: int) -> None:
    counts, levels = silu().magnitude, 1 << (bits - 1)
    candidates = np.arange(max(128, levels), 4097, 37)
    edges = thresholds.kl_divergences(counts, np.arange(max(128, levels), 4097), levels)[::37]
    for kept, divergence in zip(candidates, edges, strict=True):
        assert divergence == pytest.approx(literal_kl(counts, int(kept), levels), abs=1e-10)


def test_a_relu_spike_does_not_pull_the_entropy_threshold_down() -> None:
    active = np.abs(np.random.default_rng(2).normal(0, 1, 20_000))
    spiked = np.concatenate([active, np.zeros(2_000_000)])
    assert thresholds.entropy(of(spiked)) == thresholds.entropy(of(active))


def test_entropy_clips_a_lone_outlier_and_keeps_a_uniform_range() -> None:
    rng = np.random.default_rng(4)
    assert thresholds.entropy(of([*rng.normal(0, 1, 200_000), 60.0])) < 20.0
    assert thresholds.entropy(of(rng.uniform(0, 1.7, 400_000))) > 1.6


@pytest.mark.parametrize("bits", [3, 6, 8])
def test_symmetric_mse_is_the_best_of_all_candidates(bits: int) -> None:
    histogram = silu(7)
    counts, width, steps = histogram.magnitude, histogram.width, (1 << (bits - 1)) - 1
    top = thresholds.largest(histogram)
    centres = (np.arange(counts.size) + 0.5) * width
    used = int(np.flatnonzero(counts)[-1]) + 1
    errors = {}
    for kept in range(128, used + 1):
        threshold = min(kept * width, top)
        errors[threshold] = literal_squared_error(centres, counts, threshold / steps, 0, steps)
    found = thresholds.mse(histogram, bits=bits)
    assert errors[found] == pytest.approx(min(errors.values()), rel=1e-9)


@pytest.mark.parametrize("bits", [4, 8])
def test_asymmetric_mse_is_the_best_of_all_candidates(bits: int) -> None:
    histogram = of(np.random.default_rng(9).gumbel(1.0, 2.0, 30_000))
    counts = np.concatenate([histogram.negative[::-1], histogram.positive])
    centres = (np.arange(-4096, 4096) + 0.5) * histogram.width
    low, high = thresholds.zero_inside(histogram)
    used = int(np.flatnonzero(histogram.magnitude)[-1]) + 1
    errors = {}
    for kept in range(128, used + 1):
        a, b = max(-kept * histogram.width, low), min(kept * histogram.width, high)
        scale = (b - a) / ((1 << bits) - 1)
        zero_point = round(-a / scale)
        errors[kept] = literal_squared_error(
            centres, counts, scale, -zero_point, (1 << bits) - 1 - zero_point
        )
    found = int(np.ceil(thresholds.mse_asymmetric(histogram, bits=bits) / histogram.width))
    assert errors[found] == pytest.approx(min(errors.values()), rel=1e-9)


def test_mse_clips_harder_with_fewer_bits() -> None:
    histogram = of(np.random.default_rng(6).laplace(0, 1, 100_000))
    found = [thresholds.mse(histogram, bits=bits) for bits in (3, 4, 6, 8)]
    assert found == sorted(found)
    assert found[0] < 0.5 * found[-1]


@pytest.mark.parametrize("method", ["entropy", "mse"])
def test_more_levels_than_bins_keep_the_whole_range(method: Calibrator) -> None:
    stats = HistogramStats({"t": silu()})
    for symmetric in (True, False):
        found = stats.range("t", method, bits=16, symmetric=symmetric)
        assert found.high == stats.histogram("t").maximum


def test_the_percentile_agrees_with_the_sorted_values() -> None:
    x = np.random.default_rng(8).normal(0, 2, 200_000)
    x[:50_000] = 0.0
    histogram = of(x)
    for percentile in (30.0, 50.0, 90.0, 99.0, 99.9, 99.99):
        exact = float(np.percentile(np.abs(x), percentile))
        assert thresholds.percentile_of(histogram, percentile) == pytest.approx(
            exact, abs=1.01 * histogram.width
        )
    assert thresholds.percentile_of(histogram, 10.0) == 0.0
    assert thresholds.percentile_of(histogram, 100.0) == float(np.abs(x.astype(np.float32)).max())


@pytest.mark.parametrize("method", CALIBRATORS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_ranges_hold_zero_and_stay_within_the_exact_extremes(method: Calibrator, symmetric: bool) -> None:
    for values in ([0.0], [5.0], [-3.0, -2.0], [1e-40], [-0.25, 7.0, 0.0], [3e38, -1.0], np.arange(-9, 400)):
        histogram = of(values)
        found = HistogramStats({"t": histogram}).range("t", method, symmetric=symmetric)
        assert found.low <= 0.0 <= found.high
        assert found.threshold <= thresholds.largest(histogram)
        if symmetric:
            assert found.low == -found.high
        else:
            assert found.low >= min(histogram.minimum, 0.0)
            assert found.high <= max(histogram.maximum, 0.0)


@pytest.mark.parametrize("method", CALIBRATORS)
def test_a_tensor_of_zeros_has_the_empty_range_and_a_usable_scale(method: Calibrator) -> None:
    found = HistogramStats({"t": of(np.zeros(100))}).range("t", method)
    assert (found.low, found.high) == (0.0, 0.0)
    assert thresholds.scale_of(found, bits=8, symmetric=True) == 1.0


def test_tied_tensors_get_the_range_of_their_joint_values() -> None:
    a, b = np.random.default_rng(1).normal(0, 1, 5000), np.random.default_rng(2).normal(0, 9, 5000)
    stats = HistogramStats({"a": of(a), "b": of(b), "ab": of([*a, *b])})
    for method in CALIBRATORS:
        assert stats.merged_range(["b", "a"], method) == stats.range("ab", method)
    assert stats.range("a", "minmax").threshold < stats.range("ab", "minmax").threshold


def test_asymmetric_silu_keeps_its_short_negative_side() -> None:
    found = HistogramStats({"t": silu()}).range("t", "mse", symmetric=False)
    assert -0.2785 < found.low < -0.27
    assert found.high > 5.0


def test_numbers_that_are_not_finite_are_refused_with_their_counts() -> None:
    stats = HistogramStats({"act": of([1.0, np.nan, np.inf, -np.inf])})
    with pytest.raises(CalibrationError, match="'act'") as error:
        stats.range("act", "minmax")
    assert "1 NaN and 2 Inf" in error.value.seen


def test_wrong_requests_name_what_is_valid() -> None:
    stats = HistogramStats({"conv_out": of([1.0]), "empty": Histogram()})
    with pytest.raises(CalibrationError, match="did you mean 'conv_out'"):
        stats.range("conv_oud", "minmax")
    with pytest.raises(CalibrationError, match="did you mean 'entropy'"):
        stats.range("conv_out", "entropi")  # type: ignore[arg-type]
    for wrong in ({"bits": 1}, {"bits": 17}, {"percentile": 0.0}, {"percentile": 100.5}):
        with pytest.raises(CalibrationError, match="out of range"):
            stats.range("conv_out", "percentile", **wrong)
    with pytest.raises(CalibrationError, match="no values"):
        stats.range("empty", "minmax")
