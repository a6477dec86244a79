"""The kind of operator that ruins a plan is found by taking kinds out and measuring."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from avq.builder.diagnose import find_cause, left_float, without
from avq.types import Edge, Fidelity, NodePrecision, PlanScore, QuantizationPlan, QuantPoint
from tests.toolbox.graphs import residual_block


def point(tensor: str, node: str) -> QuantPoint:
    return QuantPoint(Edge(tensor, node, 0), np.float32(1).reshape(()), np.zeros((), np.int64))


PLAN = QuantizationPlan("d", (point("x", "a"), point("tra", "b"), point("trs", "c")))


def ruined_by(*nodes: str, otherwise: float = 0.0) -> Any:
    """An error that is bad while any of ``nodes`` is quantized."""

    def error(plan: QuantizationPlan) -> PlanScore:
        bad = any(p.edge.node in nodes for p in plan.points)
        return PlanScore(Fidelity(10, 100, 0.6 if bad else otherwise, 0.0), {"y": 30.0})

    return error


def test_the_guilty_kind_is_named_with_its_numbers() -> None:
    cause = find_cause(residual_block(), PLAN, ruined_by("c"))
    assert cause is not None and cause.kind == "depthwise" and cause.nodes == ("c",)
    assert "60.0 % of the boxes lost with them in INT8, 0.0 %" in str(cause)


@pytest.mark.parametrize("error", [ruined_by("a", "c"), ruined_by(otherwise=0.5)])
def test_no_kind_is_blamed_for_what_all_do_or_none_does(error: Any) -> None:
    assert find_cause(residual_block(), PLAN, error) is None


def test_taking_nodes_out_leaves_the_other_quantizers() -> None:
    assert {p.edge.node for p in without(PLAN, ["c"]).points} == {"a", "b"}


def test_what_a_strategy_left_float_is_counted_by_reason_without_the_head() -> None:
    precisions = {
        "c": NodePrecision("fp32", "depthwise: why"),
        "d": NodePrecision("fp32", "depthwise: why"),
        "a": NodePrecision("int8", "dense"),
        "head": NodePrecision("fp32", "decodes boxes"),
    }
    plan = QuantizationPlan("d", precisions=precisions)
    assert left_float(plan, {"head"}) == ["2 operators are float already: depthwise: why"]


def test_of_many_reasons_the_commonest_are_lines_and_the_rest_counted() -> None:
    reasons = ["a"] * 4 + ["b"] * 3 + ["c"] * 2 + ["d", "e"]
    precisions = {f"n{i}": NodePrecision("fp32", reason) for i, reason in enumerate(reasons)}
    lines = left_float(QuantizationPlan("", precisions=precisions), set())
    assert [line.split()[0] for line in lines] == ["4", "3", "2", "2"]
    assert lines[0].endswith(": a") and lines[-1] == "2 more are float for other reasons"
