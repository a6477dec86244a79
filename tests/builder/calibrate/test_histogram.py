"""The histogram against its definition, and as a commutative monoid: any order, any cut, the same bytes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avq.builder.calibrate.histogram import BINS, MIN_EXPONENT, Histogram
from avq.errors import CalibrationError
from avq.types import AnyArray

AWKWARD = [0.0, -0.0, 1.0, -1.0, 2.0**20, -(2.0**-30), 1e-45, -1e-40, 3.4028235e38, -3.4028235e38, 0.99999994]
numbers = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from(AWKWARD),
    st.integers(-149, 127).map(lambda power: 2.0**power),
    st.builds(lambda m, e: m * 10.0**e, st.floats(-1, 1, width=16), st.integers(-6, 6)),
)
lists = st.lists(
    st.one_of(numbers, st.sampled_from([math.nan, math.inf, -math.inf])), min_size=0, max_size=60
)


def of(*parts: AnyArray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def as_bytes(histogram: Histogram) -> bytes:
    return b"".join(array.tobytes() for array in histogram.to_arrays().values())


def defined(values: list[float]) -> Histogram:
    """The definition, one value at a time, in double precision."""
    floats = [float(np.float32(v)) for v in values]
    finite = [v for v in floats if math.isfinite(v)]
    top = max((abs(v) for v in finite), default=0.0)
    exponent = MIN_EXPONENT
    while top >= math.ldexp(1.0, exponent):
        exponent += 1
    counts = np.zeros((2, BINS), np.int64)
    for v in finite:
        if v != 0.0:
            counts[int(v > 0), math.floor(math.ldexp(abs(v), 12 - exponent))] += 1
    extremes = [min(finite, default=math.inf) + 0.0, max(finite, default=-math.inf) + 0.0]
    nans = sum(math.isnan(v) for v in floats)
    totals = [exponent, finite.count(0.0), nans, len(floats) - len(finite) - nans]
    arrays = {"counts": counts, "extremes": np.array(extremes), "totals": np.array(totals)}
    return Histogram.from_arrays(arrays)


@given(lists)
def test_it_counts_what_its_definition_says(values: list[float]) -> None:
    assert as_bytes(of(np.array(values, np.float32))) == as_bytes(defined(values))


@pytest.mark.slow
@settings(max_examples=200)
@given(lists, st.integers(1, 8), st.randoms(use_true_random=False))
def test_order_cuts_and_merging_change_no_byte(values: list[float], parts: int, random: object) -> None:
    whole = as_bytes(of(np.array(values, np.float32)))
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    shards = [of(np.array(shuffled[i::parts], np.float32)) for i in range(parts)]
    random.shuffle(shards)  # type: ignore[attr-defined]
    merged = Histogram()
    for shard in shards:
        merged.merge(shard)
    one_by_one = of(*(np.array([v], np.float32) for v in shuffled))
    assert as_bytes(merged) == whole
    assert as_bytes(one_by_one) == whole


def test_large_tensors_are_counted_exactly_across_blocks() -> None:
    x = np.random.default_rng(1).normal(0, 3, (3, 401, 397)).astype(np.float32)
    x[0, :50] = 0.0
    histogram = of(x)
    scaled = np.abs(x.astype(np.float64)) * 2.0 ** (12 - histogram.exponent)
    expected = np.bincount(scaled[x != 0].astype(np.int64), minlength=BINS)
    assert np.array_equal(histogram.magnitude, expected)
    assert histogram.negative.sum() == (x < 0).sum()
    assert histogram.zeros == (x == 0).sum()
    assert histogram.count == x.size


def test_more_than_float32_can_count_in_one_bin() -> None:
    histogram = of(np.full((1 << 24) + 3, 0.75, np.float32), np.full(5, 0.75, np.float32))
    assert histogram.positive.max() == (1 << 24) + 8


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float16", "float64", "int64", "bool"])
def test_any_real_dtype_is_counted_as_float32(dtype: str) -> None:
    values = np.array([0, 1, 1, 0, 1], dtype)
    assert of(values) == of(values.astype(np.float32))


def test_float64_beyond_float32_counts_as_infinite() -> None:
    assert of(np.array([1e300, 1.0])).infinities == 1


def test_strided_and_scalar_arrays_are_counted_whole() -> None:
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    assert of(x[::2, ::3].T) == of(np.array([0, 3, 12, 15], np.float32))
    assert of(np.float32(2.5)).count == 1


def test_merging_leaves_the_other_as_it_was() -> None:
    small, large = of(np.array([0.1], np.float32)), of(np.array([100.0], np.float32))
    before = as_bytes(small)
    large.merge(small)
    assert as_bytes(small) == before
    assert large.count == 2


def test_arrays_round_trip() -> None:
    histogram = of(np.array([-3.0, 0.0, 7.5, np.nan, np.inf], np.float32))
    assert Histogram.from_arrays(histogram.to_arrays()) == histogram
    assert histogram != of(np.array([1.0], np.float32))


@pytest.mark.parametrize(
    "harm",
    [
        lambda a: a["counts"].__imul__(-1),
        lambda a: a["totals"].__setitem__(0, 9),
        lambda a: a.update(totals=a["totals"][:2]),
    ],
)
def test_arrays_that_are_no_histogram_are_refused(harm: object) -> None:
    arrays = of(np.array([1.5, 2.5], np.float32)).to_arrays()
    harm(arrays)  # type: ignore[operator]
    with pytest.raises(CalibrationError, match="damaged"):
        Histogram.from_arrays(arrays)
