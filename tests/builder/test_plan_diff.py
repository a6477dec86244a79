"""Plans survive the disk exactly, and a difference is always named."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from avq.builder.plan_diff import diff_plans
from avq.bundle.plan import plan_from_parts, plan_to_parts
from avq.errors import PlanError
from avq.types import Edge, NodePrecision, QuantizationPlan, QuantPoint

NAMES = st.text(min_size=1, max_size=12)
EDGES = st.one_of(st.builds(Edge, NAMES), st.builds(Edge, NAMES, NAMES, st.integers(0, 5)))
SCALES = hnp.arrays(
    np.float32, st.sampled_from([(), (1,), (4,)]), elements=st.floats(2.0**-60, 2.0**30, width=32)
)


@st.composite
def points(draw: st.DrawFn, edge: Edge) -> QuantPoint:
    scale = draw(SCALES)
    return QuantPoint(
        edge,
        scale,
        draw(hnp.arrays(np.int64, scale.shape, elements=st.integers(-128, 255))),
        axis=draw(st.sampled_from([None, 0, 1, -1])),
        block_size=draw(st.sampled_from([None, 16])),
        bits=draw(st.integers(2, 16)),
        signed=draw(st.booleans()),
        narrow=draw(st.booleans()),
        rounding=draw(st.sampled_from(["half_even", "half_up", "floor", "ceil", "toward_zero"])),
        mode=draw(st.sampled_from(["static", "dynamic", "weight-only"])),
    )


@st.composite
def plans(draw: st.DrawFn) -> QuantizationPlan:
    edges = draw(st.lists(EDGES, unique=True, max_size=4))
    finite = st.floats(allow_nan=False, allow_infinity=False)
    precision = st.sampled_from(["fp32", "bf16", "fp16", "int8", "int4"])
    return QuantizationPlan(
        graph_digest=draw(st.text(max_size=8)),
        points=tuple(draw(points(edge)) for edge in edges),
        ties=(frozenset(edges),) if edges else (),
        precisions=draw(
            st.dictionaries(NAMES, st.builds(NodePrecision, precision, st.text(max_size=9)), max_size=3)
        ),
        overrides=draw(
            st.dictionaries(
                NAMES,
                hnp.arrays(
                    st.sampled_from([np.dtype("f4"), np.dtype("f2"), np.dtype("i8")]),
                    hnp.array_shapes(max_side=3),
                ),
                max_size=2,
            )
        ),
        ranges=draw(st.dictionaries(NAMES, st.tuples(finite, finite), max_size=2)),
        owner=draw(st.text(max_size=5)),
        owner_version=draw(st.text(max_size=5)),
    )


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(plan=plans())
def test_a_plan_comes_back_the_same(plan: Any) -> None:
    again = plan_from_parts(*plan_to_parts(plan))
    assert again.digest == plan.digest
    assert diff_plans(plan, again) == []


def _plan() -> QuantizationPlan:
    scale, zero = np.float32(0.5).reshape(()), np.zeros((), np.int64)
    channels = QuantPoint(Edge("w"), np.ones(3, np.float32), np.zeros(3, np.int64), axis=0)
    return QuantizationPlan(
        "graph",
        (QuantPoint(Edge("x"), scale, zero), channels),
        precisions={"conv": NodePrecision("int8", "faster")},
        overrides={"b": np.zeros(3, np.float32)},
        ranges={"x": (-1.0, 1.0)},
        owner="static",
        owner_version="1",
    )


def _changed() -> list[tuple[str, str, str, QuantizationPlan]]:
    plan = _plan()
    data, weight = plan.points
    return [
        (
            "point",
            "x",
            "scale",
            replace(plan, points=(replace(data, scale=np.float32(0.25).reshape(())), weight)),
        ),
        ("point", "x", "bits", replace(plan, points=(replace(data, bits=6), weight))),
        ("point", "w", "scale", replace(plan, points=(data, replace(weight, scale=weight.scale * 2)))),
        ("point", "w", "", replace(plan, points=(data,))),
        ("precision", "conv", "", replace(plan, precisions={"conv": NodePrecision("fp32", "slower")})),
        ("override", "b", "", replace(plan, overrides={"b": np.ones(3, np.float32)})),
        ("range", "x", "", replace(plan, ranges={})),
        ("tie", "w, x", "", replace(plan, ties=(frozenset({Edge("x"), Edge("w")}),))),
        ("owner", "", "", replace(plan, owner_version="2")),
        ("graph", "", "digest", replace(plan, graph_digest="other")),
    ]


@pytest.mark.parametrize("index", range(10))
def test_every_kind_of_difference_is_named(index: Any) -> None:
    kind, where, field, changed = _changed()[index]
    (difference,) = diff_plans(_plan(), changed)
    assert (difference.kind, difference.where, difference.field) == (kind, where, field)
    assert difference.a != difference.b


def test_a_changed_plan_is_refused() -> None:
    text, arrays = plan_to_parts(_plan())
    with pytest.raises(PlanError, match="damaged"):
        plan_from_parts(
            text.replace(b'"bits": 8', b'"bits": 7', 1).replace(b'"bits":8', b'"bits":7', 1), arrays
        )


def test_pickled_arrays_are_never_unpickled() -> None:
    text, arrays = plan_to_parts(_plan())
    hostile = io.BytesIO()
    np.save(hostile, np.array([object()], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(io.BytesIO(arrays)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["scale_0.npy"] = hostile.getvalue()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(PlanError, match="damaged"):
        plan_from_parts(text, packed.getvalue())
