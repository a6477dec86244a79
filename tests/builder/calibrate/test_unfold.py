"""Convolutions as matrix products: the rows that Gram matrices are summed of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from avq.builder.calibrate.moments import unfold_of
from avq.builder.graph.view import view_of
from avq.engines import engine_by_name
from avq.errors import CalibrationError
from avq.types import SessionOptions

pytest.importorskip("onnxruntime")
RNG = np.random.default_rng(0)


def model_of(op: str, weight: np.ndarray, data: tuple[int, ...], **attributes: Any) -> Any:
    node = helper.make_node(op, ["x", "w"], ["y"], name="node", **attributes)
    value = helper.make_tensor_value_info
    constant = helper.make_tensor("w", TensorProto.FLOAT, weight.shape, weight.ravel())
    graph = helper.make_graph(
        [node], "g", [value("x", TensorProto.FLOAT, data)], [value("y", TensorProto.FLOAT, None)], [constant]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def answer(model: Any, x: np.ndarray) -> np.ndarray:
    session = engine_by_name("onnxruntime").open(model.SerializeToString(), SessionOptions(optimise=False))
    try:
        return np.array(session.run({"x": x})["y"])
    finally:
        session.close()


@pytest.mark.parametrize(
    ("weight", "attributes"),
    [
        ((5, 6, 1, 1), {}),
        ((5, 6, 3, 3), {"pads": [1, 1, 1, 1]}),
        ((4, 6, 3, 2), {"pads": [0, 1, 2, 0], "strides": [2, 1]}),
        ((6, 1, 3, 3), {"group": 6, "dilations": [2, 2], "pads": [2, 2, 2, 2]}),
        ((4, 3, 5, 5), {"group": 2, "strides": [2, 2], "pads": [2, 2, 2, 2]}),
        ((4, 6, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ((4, 6, 2, 2), {"auto_pad": "SAME_LOWER"}),
        ((4, 6, 3, 3), {"auto_pad": "VALID"}),
    ],
)
def test_rows_times_weights_are_the_convolution(weight: Any, attributes: dict[str, Any]) -> None:
    weights = RNG.normal(size=weight).astype(np.float32)
    x = RNG.normal(size=(1, 6, 11, 9)).astype(np.float32)
    model = model_of("Conv", weights, x.shape, **attributes)
    unfold = unfold_of(view_of(model), "node")
    rows = unfold.rows(x, limit=10_000)
    product = rows @ weights.reshape(unfold.group, weight[0] // unfold.group, -1).transpose(0, 2, 1)
    expected = answer(model, x)
    np.testing.assert_allclose(
        product.transpose(0, 2, 1).reshape(expected.shape), expected, rtol=1e-4, atol=1e-4
    )


def test_rows_of_a_matrix_product_and_a_limit() -> None:
    weights = RNG.normal(size=(6, 4)).astype(np.float32)
    x = RNG.normal(size=(1, 300, 6)).astype(np.float32)
    model = model_of("MatMul", weights, x.shape)
    unfold = unfold_of(view_of(model), "node")
    np.testing.assert_allclose(unfold.rows(x, limit=10_000)[0] @ weights, answer(model, x)[0], atol=1e-4)
    taken = unfold.rows(x, limit=7)
    assert taken.shape == (1, 7, 6) and np.array_equal(taken[0, 1], x[0, 300 // 7])


def test_other_operators_have_no_gram_matrix() -> None:
    model = model_of("ConvTranspose", RNG.normal(size=(6, 4, 2, 2)).astype(np.float32), (1, 6, 4, 4))
    with pytest.raises(CalibrationError, match="no Gram matrix of 'node'"):
        unfold_of(view_of(model), "node")
