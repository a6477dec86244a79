"""Ranges become grids that hold zero exactly and never overflow."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from avq.toolbox import activation_point, quantize, weight_point
from avq.types import Edge, Range

reals = st.floats(0.0, 1e6, allow_subnormal=False)


@given(low=reals, high=reals, symmetric=st.booleans())
def test_zero_is_exact_and_the_range_is_covered(low: Any, high: Any, symmetric: Any) -> None:
    point = activation_point(Edge("t"), Range(-low, high), symmetric=symmetric)
    zero = quantize(np.zeros(1, np.float32), point)
    assert zero[0] == point.zero_point
    reach_high = float(point.scale) * (point.qmax - int(point.zero_point))
    reach_low = float(point.scale) * (point.qmin - int(point.zero_point))
    step = float(point.scale)
    assert reach_high >= high - step and reach_low <= -low + step


def test_symmetric_points_are_what_every_target_takes() -> None:
    assert activation_point(Edge("t"), Range(-1.0, 2.0), symmetric=True).symmetric
    assert not activation_point(Edge("t"), Range(0.0, 2.0), symmetric=False).symmetric


def test_a_relu_range_uses_all_256_levels_on_an_unsigned_grid() -> None:
    point = activation_point(Edge("t"), Range(0.0, 2.55), symmetric=False)
    assert (point.qmin, point.qmax, int(point.zero_point)) == (0, 255, 0)
    np.testing.assert_allclose(point.scale, 0.01, rtol=1e-6)


def test_weights_use_one_scale_per_output_channel_and_dead_channels_stay_legal() -> None:
    weight = np.zeros((3, 2, 1, 1), np.float32)
    weight[0] = 1.27
    weight[2] = -0.0127
    point = weight_point(Edge("w", "n", 1), weight, 0)
    np.testing.assert_allclose(point.scale[[0, 2]], [0.01, 0.0001], rtol=1e-5)
    assert point.scale[1] > 0
    assert quantize(weight, point)[0].tolist() == [[[127]], [[127]]]
