"""INT4 and scales per block: lint against the real parser and builder, on networks drawn whether legal or not.

Whatever lint passes is built, and what it calls an error is refused, crashes the builder, or is cut into other blocks
than the file says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from avq.builder.lint import lint
from tests.builder.lint.int4_graphs import Grid, Sketch, convolutions, products
from tests.builder.lint.real_parser import real_parser, survives

TARGET = "tensorrt-rtx"
DRAWN = 60
#: Nets that the builder takes in some forms and dies of in others: only the parser may see them here.
DEADLY = {"AVQ-L50"}


@pytest.fixture(scope="module")
def parser() -> Any:
    return real_parser()


def errors_of(model: onnx.ModelProto, target: str = TARGET) -> set[str]:
    return {finding.id for finding in lint(model, target) if finding.severity == "error"}


@cache
def drawn(draw: Callable[[int], onnx.ModelProto], seed: int) -> tuple[onnx.ModelProto, frozenset[str]]:
    """A network, which nobody changes, and what lint finds in it: the tests look at the same ones."""
    model = draw(seed)
    return model, frozenset(errors_of(model))


def _refusal(parser: Any, model: onnx.ModelProto) -> str:
    """'' when an engine comes out."""
    content = model.SerializeToString()
    answer = parser.ask(content)
    return answer.words if answer.verdict == "rejects" else parser.builds(content)


@pytest.mark.slow
@pytest.mark.parametrize("draw", [products, convolutions])
def test_what_lint_passes_is_built_and_what_it_refuses_is_not(
    parser: Any, draw: Callable[[int], onnx.ModelProto]
) -> None:
    verdicts: Counter[str] = Counter()
    for seed in range(DRAWN):
        model, errors = drawn(draw, seed)
        if not errors & DEADLY:
            said = _refusal(parser, model)
            assert (seed, bool(errors)) == (seed, bool(said)), (errors, said)
        verdicts["broken" if errors else "legal"] += 1
    assert min(verdicts.values()) >= DRAWN // 4


def test_the_draws_hold_every_kind_of_grid_and_most_rules(parser: Any) -> None:
    models = [drawn(draw, seed) for draw in (products, convolutions) for seed in range(DRAWN)]
    found = Counter(rule for _, errors in models for rule in errors)
    assert {"AVQ-L01", "AVQ-L02", "AVQ-L22", "AVQ-L47", "AVQ-L48", "AVQ-L49", "AVQ-L51"} <= set(found)
    legal = [model for model, errors in models if not errors]
    kinds = Counter(t.data_type for model in legal for t in model.graph.initializer)
    assert min(kinds[k] for k in (TensorProto.INT4, TensorProto.INT8, TensorProto.FLOAT16)) > 20
    blocked = [m for m in legal if any(a.name == "block_size" for n in m.graph.node for a in n.attribute)]
    assert len(blocked) >= 10


def test_legal_ones_are_legal_to_onnxruntime_too() -> None:
    for draw in (products, convolutions):
        legal = [model for model, errors in (drawn(draw, seed) for seed in range(DRAWN)) if not errors]
        for model in legal[:8]:
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            session = onnxruntime.InferenceSession(model.SerializeToString(), options)
            shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
            (answer,) = session.run(None, {"x": np.ones(shape, np.float32)})
            assert np.isfinite(answer).all()


# One network for each thing that lint says of 4 bits and blocks


def sketch(*, half: bool = False, opset: int = 23) -> Sketch:
    drawn = Sketch(0)
    drawn.half, drawn.opset = half, opset
    drawn.float = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    vars(drawn)["chance"] = lambda share: False
    return drawn


def weights(
    s: Sketch, grid: Grid, shape: tuple[int, ...] = (32, 32), *, scale: int = 0, result: int = 0
) -> str:
    """Integers behind DequantizeLinear, with scales of type ``scale`` and ``output_dtype`` ``result``."""
    scales = s.array(s.reals(grid.scales(shape), scale or s.float))
    parameters = [s.integers(shape, grid.kind), scales, s.integers(grid.scales(shape), grid.kind, 0)]
    told = {"output_dtype": result} if result else {}
    return s.op("DequantizeLinear", parameters, **grid.attributes, **told)


def multiplied(s: Sketch, weight: str) -> onnx.ModelProto:
    x = s.op("Cast", ["x"], to=s.float)
    return s.model([10, 32], [s.op("MatMul", [x, weight])])


FOUR, BLOCKS = Grid(TensorProto.INT4, 1), Grid(TensorProto.INT4, 0, 16)


@pytest.mark.parametrize("grid", [Grid(TensorProto.INT4), FOUR, BLOCKS], ids=["tensor", "channel", "block"])
@pytest.mark.parametrize("half", [False, True])
def test_scales_are_in_the_type_of_the_result(parser: Any, grid: Grid, half: bool) -> None:
    legal = sketch(half=half)
    model = multiplied(legal, weights(legal, grid))
    assert errors_of(model) == set() and _refusal(parser, model) == ""
    other = TensorProto.FLOAT if half else TensorProto.FLOAT16
    broken = sketch(half=half)
    model = multiplied(broken, weights(broken, grid, scale=other, result=broken.float))
    assert errors_of(model) == {"AVQ-L47"}
    assert "infer output types" in _refusal(parser, model)


def test_eight_bits_may_have_scales_of_another_type_than_their_result(parser: Any) -> None:
    s = sketch(half=True)
    grid = Grid(TensorProto.INT8, 1)
    model = multiplied(s, weights(s, grid, scale=TensorProto.FLOAT, result=TensorProto.FLOAT16))
    assert errors_of(model) == set() and _refusal(parser, model) == ""


def _left(s: Sketch, weight: str) -> onnx.ModelProto:
    return s.model([32, 10], [s.op("MatMul", [weight, s.op("Cast", ["x"], to=s.float)])])


def _shared(s: Sketch, weight: str) -> onnx.ModelProto:
    x = s.op("Cast", ["x"], to=s.float)
    total = s.op("ReduceSum", [weight], keepdims=0)
    return s.model([10, 32], [s.op("Add", [s.op("MatMul", [x, weight]), total])])


@pytest.mark.parametrize("build", [_left, _shared])
def test_blocks_that_kill_the_builder_are_named_before(
    build: Callable[[Sketch, str], onnx.ModelProto],
) -> None:
    real_parser()
    for kind, lives in ((TensorProto.INT4, False), (TensorProto.INT8, True)):
        s = sketch()
        model = build(s, weights(s, Grid(kind, 0, 16)))
        assert errors_of(model) == (set() if lives else {"AVQ-L50"})
        assert survives(model.SerializeToString()) is lives


def test_blocks_that_do_not_fit_are_cut_into_others_without_a_word(parser: Any) -> None:
    s = sketch()
    model = multiplied(
        s, weights(s, Grid(TensorProto.INT4, 1, 24))
    )  # 24 and 8; the parser makes 16 and 16 of it
    assert errors_of(model) == {"AVQ-L22"} and parser.ask(model.SerializeToString()).verdict == "accepts"


def test_what_tensorrt_10_does_not_read_is_an_error_for_it_and_none_for_cards_that_do(parser: Any) -> None:
    s = sketch()
    model = multiplied(s, weights(s, Grid(TensorProto.INT8, 0, 16)))
    assert errors_of(model) == set() and _refusal(parser, model) == ""
    assert errors_of(model, "tensorrt") == {"AVQ-L22"}


def test_data_in_four_bits_is_warned_of(parser: Any) -> None:
    s = sketch()
    parameters = [s.array(np.float32(0.02)), s.integers((), TensorProto.INT4, 0)]
    pair = s.op("DequantizeLinear", [s.op("QuantizeLinear", ["x", *parameters]), *parameters])
    model = s.model([10, 32], [s.op("Relu", [pair])])
    assert {finding.id for finding in lint(model, TARGET)} == {"AVQ-L52"}
    assert _refusal(parser, model) == ""


@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.INT8])
@pytest.mark.parametrize("use", ["Transpose", "Cast"])
def test_integer_constants_go_straight_to_their_dequantizer(parser: Any, kind: int, use: str) -> None:
    s = sketch()
    integers = s.integers((32, 32), kind)
    if use == "Cast":
        weight = s.op("Cast", [integers], to=TensorProto.FLOAT)
    else:
        scale, zero = s.array(np.float32(0.02)), s.integers((), kind, 0)
        weight = s.op("DequantizeLinear", [s.op("Transpose", [integers], perm=[1, 0]), scale, zero])
    model = multiplied(s, weight)
    assert errors_of(model) == {"AVQ-L51"} and "consumed by" in _refusal(parser, model).replace(
        "only allowed before", "consumed by"
    )


def test_integers_of_four_bits_are_reshaped_and_nothing_else_on_their_way(parser: Any) -> None:
    for op, attributes, legal in (("Transpose", {"perm": [1, 0]}, True), ("Unsqueeze", {}, False)):
        s = sketch()
        parameters = [s.array(np.float32(0.02)), s.integers((), TensorProto.INT4, 0)]
        axes = [] if attributes else [s.array(np.array([0], np.int64))]
        moved = s.op(op, [s.op("QuantizeLinear", ["x", *parameters]), *axes], **attributes)
        model = s.model([10, 32], [s.op("DequantizeLinear", [moved, *parameters])])
        assert errors_of(model) == (set() if legal else {"AVQ-L51"})
        assert (_refusal(parser, model) == "") is legal


def test_a_summed_axis_may_have_the_scales_of_four_bits(parser: Any) -> None:
    s = sketch()
    model = multiplied(s, weights(s, Grid(TensorProto.INT4, 0)))
    assert errors_of(model) == set() and _refusal(parser, model) == ""
    eight = sketch()
    assert errors_of(multiplied(eight, weights(eight, Grid(TensorProto.INT8, 0)))) == {"AVQ-L31"}


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("scale", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_repeated_weights_beside_integers_need_scales_of_one_type(parser: Any, rank: int, scale: int) -> None:
    """8-bit weights too: in FP16 networks the builder compares the scales of both sides."""
    s = sketch(half=True)
    x = s.op("Cast", ["x"], to=s.float)
    parameters = [s.array(np.float32(0.02)), s.integers((), TensorProto.INT8, 0)]
    pair = s.op("QuantizeLinear", [x, *parameters])
    pair = s.op("DequantizeLinear", [pair, *parameters], output_dtype=TensorProto.FLOAT16)
    told = 0 if scale == TensorProto.FLOAT16 else TensorProto.FLOAT16
    weight = weights(s, Grid(TensorProto.INT8, 1), scale=scale, result=told)
    model = s.model([10, 32] if rank == 2 else [1, 10, 32], [s.op("MatMul", [pair, weight])])
    legal = rank == 2 or scale == TensorProto.FLOAT
    assert errors_of(model) == (set() if legal else {"AVQ-L49"})
    assert (_refusal(parser, model) == "") is legal


def test_a_cycle_and_missing_tensors_do_not_stop_the_rules() -> None:
    s = sketch()
    weight = weights(s, BLOCKS)
    s.op("Transpose", [weight], perm=[1, 0])
    s.nodes[0].input[0] = s.nodes[-1].output[0]
    assert "AVQ-L37" in errors_of(multiplied(s, weight))
