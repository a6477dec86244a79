"""One picture of a fixed size goes in, whatever the exporter declared."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from avq.builder.graph.model import normalise
from avq.errors import ModelError
from tests.builder.graph.graph_case import conv, info, model_of, ops, picture, run, small, weights


def test_dynamic_sizes_need_a_size_and_take_one() -> None:
    proto = model_of(
        [conv(y="y")], [info("x", ["n", 3, "h", "w"])], [info("y", None)], {"w": weights(4, 3, 3, 3)}
    )
    with pytest.raises(ModelError) as error:
        normalise(proto)
    assert "--preprocess" in error.value.fix
    assert "width_px" in error.value.fix
    model = normalise(proto, input_size_px=(24, 16))
    assert model.view.inputs[0].shape == (1, 3, 16, 24)
    assert model.view.outputs[0].shape == (1, 4, 16, 24)
    with pytest.raises(ModelError, match="8x8 px, not 16x8"):
        normalise(small(), input_size_px=(16, 8))


def test_channels_last_inputs_become_channels_first() -> None:
    nodes = [helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]), conv("t", "y")]
    proto = model_of(nodes, [info("x", [1, 8, 8, 3])], [info("y", None)], {"w": weights(4, 3, 3, 3)})
    model = normalise(proto)
    assert model.view.inputs[0].shape == (1, 3, 8, 8)
    assert ops(model) == ["Conv"], "the exporter's own Transpose is undone"
    x = picture(1, 3, 8, 8)
    np.testing.assert_array_equal(run(model.proto, x)[0], run(proto, x.transpose(0, 2, 3, 1).copy())[0])


def test_channels_last_arithmetic_before_the_transpose_stays_right() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "k"], ["m"]),
        helper.make_node("Transpose", ["m"], ["t"], perm=[0, 3, 1, 2]),
        conv("t", "y"),
    ]
    proto = model_of(
        nodes,
        [info("x", [1, 8, 8, 3])],
        [info("y", None)],
        {"w": weights(4, 3, 3, 3), "k": np.array([1, 2, 3], np.float32)},
    )
    x = picture(1, 3, 8, 8)
    got = run(normalise(proto).proto, x)[0]
    np.testing.assert_array_equal(got, run(proto, x.transpose(0, 2, 3, 1).copy())[0])


def test_a_picture_size_input_of_detr_is_bound_to_the_network_size() -> None:
    nodes = [
        conv(y="a", pads=[0] * 4, strides=[8, 8]),
        helper.make_node("Cast", ["size"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["f"], ["r"], keepdims=0),
        helper.make_node("Mul", ["a", "r"], ["y"]),
    ]
    proto = model_of(
        nodes,
        [info("x", [1, 3, 8, 16]), info("size", [1, 2], TensorProto.INT64)],
        [info("y", None)],
        {"w": weights(4, 3, 3, 3)},
    )
    model = normalise(proto)
    assert [i.name for i in model.view.inputs] == ["x"]
    assert "16x8" in model.messages[0]
    x = picture(1, 3, 8, 16)
    np.testing.assert_allclose(run(model.proto, x)[0], run(proto, x, np.array([[16, 8]]))[0], rtol=1e-5)


def test_several_pictures_and_batches_are_refused_with_the_inputs_listed() -> None:
    nodes = [helper.make_node("Add", ["left", "right"], ["y"])]
    proto = model_of(nodes, [info("left", [1, 3, 8, 8]), info("right", [1, 3, 8, 8])], [info("y", None)])
    with pytest.raises(ModelError) as error:
        normalise(proto)
    assert "left" in error.value.seen
    assert "right" in error.value.seen
    four = model_of([conv()], [info("x", [4, 3, 8, 8])], [info("y", None)], {"w": weights(4, 3, 3, 3)})
    with pytest.raises(ModelError, match="4 pictures at once"):
        normalise(four)


def test_uint8_inputs_are_accepted() -> None:
    nodes = [helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT), conv("f", "y")]
    proto = model_of(
        nodes, [info("x", [1, 3, 8, 8], TensorProto.UINT8)], [info("y", None)], {"w": weights(4, 3, 3, 3)}
    )
    assert normalise(proto).view.inputs[0].dtype == "uint8"


def test_pictures_without_a_batch_axis_get_one() -> None:
    nodes = [
        helper.make_node("Sub", ["x", "m"], ["a"]),
        helper.make_node("Unsqueeze", ["a", "zero"], ["b"]),
        conv("b", "y"),
    ]
    extra = {"m": weights(3, 1, 1), "zero": np.array([0])}
    proto = model_of(nodes, [info("x", [3, 8, 8])], [info("y", None)], {"w": weights(4, 3, 3, 3), **extra})
    model = normalise(proto)
    assert model.view.inputs[0].shape == (1, 3, 8, 8)
    x = picture(1, 3, 8, 8)
    np.testing.assert_array_equal(run(model.proto, x)[0], run(proto, x[0])[0])
