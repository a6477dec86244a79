"""Charts of measured points, networks and counts."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avq.render import Mark, PairRow, figure_chart, log_histogram, pair_bars, profile
from avq.types import Figure, FigurePoint, Series


def front(*points: FigurePoint, limit: float | None = 1.0) -> Figure:
    return Figure(
        "Front", "time / float", "boxes lost, %", (Series("front", points, line=True),), y_limit=limit
    )


def test_the_chosen_point_its_interval_and_the_limit_are_drawn() -> None:
    html = figure_chart(
        front(FigurePoint(0.6, 0.2, "all INT8", True, 0.55, 0.65), FigurePoint(1.0, 0.0, "all float"))
    )
    assert html.count('class="dot') == 2 and html.count('class="ring"') == 1
    assert 'class="interval"' in html and 'class="limit"' in html and "limit 1" in html
    assert 'class="name chosen"' in html and ">all INT8</span>" in html
    assert "time / float" in html and "boxes lost, %" in html


def test_names_are_text_and_never_markup() -> None:
    html = figure_chart(front(FigurePoint(1.0, 0.0, "<script>x</script>")))
    assert "<script" not in html and "&lt;script&gt;" in html


def test_nothing_measured_says_so() -> None:
    assert "no points" in figure_chart(front())
    assert "no points" in figure_chart(front(FigurePoint(float("nan"), 1.0)))


def test_one_collapsed_plan_does_not_squeeze_the_others() -> None:
    """A plan that loses 80 % must not push 0.2 % and 0.9 % onto one line."""
    html = figure_chart(front(FigurePoint(0.5, 80.0), FigurePoint(0.6, 0.2), FigurePoint(0.7, 0.9)))
    heights = sorted(float(y) for y in re.findall(r'class="dot" d="M[\d.]+ ([\d.]+)h', html))
    assert len(heights) == 3 and heights[2] - heights[1] > 60


@given(
    st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=8), st.floats(0, 1e3)
)
def test_every_point_lies_inside_the_chart(points: Any, limit: Any) -> None:
    html = figure_chart(front(*(FigurePoint(x, y) for x, y in points), limit=limit))
    places = re.findall(r'class="dot" d="M(-?[\d.]+) (-?[\d.]+)h', html)
    assert len(places) == len(points)
    assert all(-0.1 <= float(v) <= 1000.1 for place in places for v in place)


def test_pairs_share_one_scale_and_unknown_ones_are_a_dash() -> None:
    html = pair_bars([PairRow("conv", 4.0, 1.0), PairRow("head", 2.0, None)], ("float", "INT8"), unit="ms")
    assert "width:100.00%" in html and "width:25.00%" in html and "width:50.00%" in html
    assert "2 / \u2013 ms" in html


def test_a_profile_shows_small_ones_beside_a_large_one() -> None:
    html = profile([1.0, 0.0001, 0.0], ["plain", "warn", "plain"], legend=[("INT8", "plain")])
    heights = [float(v) for v in re.findall(r"M[\d.]+ 100V([\d.]+)h", html)]
    assert heights[0] == 0.0 and all(h <= 96.0 for h in heights)


@pytest.mark.parametrize("bins", [10, 4096])
def test_single_counts_show_beside_millions(bins: int) -> None:
    counts = [1_000_000] + [0] * (bins - 2) + [1]
    html = log_histogram(counts, 0.0, 6.0, marks=[Mark("minmax", 6.0), Mark("entropy", 3.0, "good")])
    assert 'x1="500.0"' in html and "entropy 3" in html
    assert html.count("V0.00h") == 1 and len(html) < 20_000
