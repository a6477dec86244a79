"""Quantizers go where integer kernels read, and nowhere else."""

from __future__ import annotations

import numpy as np

from avq.toolbox import concat_ties, place, residual_identity_edges
from avq.types import Edge, NodeView
from tests.toolbox.graphs import conv, residual_block, view


def test_weighted_operators_are_placed_with_their_kind_and_axis() -> None:
    placed = {p.node: p for p in place(residual_block())}
    assert list(placed) == ["a", "b", "c"]
    assert placed["a"].activations == (Edge("x", "a", 0),)
    assert placed["a"].weight == Edge("wa", "a", 1)
    assert [placed[n].kind for n in "abc"] == ["dense", "dense", "depthwise"]
    assert {p.weight_axis for p in placed.values()} == {0}


def test_kept_float_nodes_are_not_placed() -> None:
    assert [p.node for p in place(residual_block(), keep_float={"b": "why"})] == ["a", "c"]


def test_only_the_identity_branch_of_a_residual_is_quantized() -> None:
    graph = residual_block()
    assert residual_identity_edges(graph, place(graph)) == (Edge("x", "add", 1),)


def test_a_residual_whose_last_operator_stays_float_gets_no_quantizer() -> None:
    """The Add cannot join an integer kernel that is not there, however much before it is quantized."""
    graph = residual_block()
    assert residual_identity_edges(graph, place(graph, keep_float={"b"})) == ()


def test_an_add_of_two_branches_without_identity_gets_no_quantizer() -> None:
    weights = {"wa": np.ones((8, 8, 1, 1), np.float32), "wb": np.ones((8, 8, 1, 1), np.float32)}
    graph = view(
        [
            conv("a", "x", "ta", "wa"),
            conv("b", "x", "tb", "wb"),
            NodeView("s", "Add", ("ta", "tb"), ("y",), {}),
        ],
        weights,
        ["y"],
    )
    assert residual_identity_edges(graph, place(graph)) == ()


def test_a_matmul_of_two_activations_quantizes_both_and_a_gemm_knows_its_axis() -> None:
    graph = view(
        [
            NodeView("mm", "MatMul", ("x", "x"), ("t",), {}),
            NodeView("g", "Gemm", ("t", "w"), ("y",), {"transB": 1}),
        ],
        {"w": np.ones((4, 16), np.float32)},
        ["y"],
    )
    matmul, gemm = place(graph)
    assert matmul.activations == (Edge("x", "mm", 0), Edge("x", "mm", 1)) and matmul.weight is None
    assert gemm.weight_axis == 0 and gemm.kind == "matmul"


def test_a_convolution_with_computed_weights_stays_float() -> None:
    graph = view([NodeView("c", "Conv", ("x", "x"), ("y",), {})], {}, ["y"])
    assert place(graph) == ()


def test_concatenated_tensors_share_a_scale_also_through_a_chain() -> None:
    nodes = [
        NodeView("c1", "Concat", ("a", "b"), ("ab",), {}),
        NodeView("c2", "Concat", ("ab", "c"), ("abc",), {}),
        NodeView("c3", "Concat", ("d", "e"), ("de",), {}),
    ]
    ties = concat_ties(view(nodes, {}, ["abc", "de"]), {"a", "b", "ab", "abc", "d"})
    assert ties == (frozenset({"a", "b", "ab", "abc"}),)
