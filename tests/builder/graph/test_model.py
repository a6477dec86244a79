"""What users export becomes one normalised graph that computes the same."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from avq.builder.graph.model import normalise, view_of
from avq.errors import ModelError
from tests.builder.graph.graph_case import conv, info, model_of, ops, picture, run, small, weights


def test_weights_listed_as_inputs_are_no_inputs() -> None:
    proto = small(ir=3)
    proto.graph.input.append(info("w", [4, 3, 3, 3]))
    model = normalise(proto)
    assert [i.name for i in model.view.inputs] == ["x"]
    assert [i.name for i in proto.graph.input] == ["x", "w"], "the given model stays as it is"


def test_batch_norm_and_per_channel_arithmetic_go_into_the_convolution() -> None:
    nodes = [
        conv(y="a"),
        helper.make_node("BatchNormalization", ["a", "s", "b", "m", "v"], ["c"], epsilon=1e-3),
        helper.make_node("Mul", ["k", "c"], ["d"]),
        helper.make_node("Sub", ["d", "t"], ["e"]),
        helper.make_node("Relu", ["e"], ["y"]),
    ]
    proto = model_of(
        nodes,
        [info("x", [1, 3, 8, 8])],
        [info("y", None)],
        {
            "w": weights(4, 3, 3, 3),
            "s": weights(4, seed=2) + 1,
            "b": weights(4, seed=3),
            "m": weights(4, seed=4),
            "v": weights(4, seed=5) ** 2 + 0.5,
            "k": weights(1, 4, 1, 1, seed=6),
            "t": np.float32(0.3),
        },
    )
    model = normalise(proto)
    assert ops(model) == ["Conv", "Relu"]
    assert model.messages == ("3 normalisation nodes folded into convolutions",)
    x = picture(1, 3, 8, 8)
    np.testing.assert_allclose(run(model.proto, x)[0], run(proto, x)[0], rtol=1e-4, atol=1e-5)


def test_shared_weights_get_their_own_copy_when_only_one_use_is_scaled() -> None:
    nodes = [
        conv(y="a"),
        helper.make_node("Mul", ["a", "k"], ["b"]),
        conv(y="c"),
        helper.make_node("Add", ["b", "c"], ["y"]),
    ]
    proto = model_of(
        nodes,
        [info("x", [1, 3, 8, 8])],
        [info("y", None)],
        {"w": weights(4, 3, 3, 3), "k": np.array([3.0], np.float32).reshape(1, 1, 1, 1)},
    )
    model = normalise(proto)
    assert ops(model) == ["Conv", "Conv", "Add"]
    x = picture(1, 3, 8, 8)
    np.testing.assert_allclose(run(model.proto, x)[0], run(proto, x)[0], rtol=1e-4, atol=1e-5)


def test_grouped_transposed_convolutions_fold_too() -> None:
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w"], ["a"], kernel_shape=[2, 2], strides=[2, 2], group=2),
        helper.make_node("Mul", ["a", "k"], ["y"]),
    ]
    k = weights(6, 1, 1, seed=7)
    proto = model_of(nodes, [info("x", [1, 4, 4, 4])], [info("y", None)], {"w": weights(4, 3, 2, 2), "k": k})
    model = normalise(proto)
    assert ops(model) == ["ConvTranspose"]
    x = picture(1, 4, 4, 4)
    np.testing.assert_allclose(run(model.proto, x)[0], run(proto, x)[0], rtol=1e-4, atol=1e-5)


def test_a_convolution_that_others_read_is_not_folded() -> None:
    nodes = [conv(y="a"), helper.make_node("Mul", ["a", "k"], ["y"]), helper.make_node("Relu", ["a"], ["z"])]
    proto = model_of(
        nodes,
        [info("x", [1, 3, 8, 8])],
        [info("y", None), info("z", None)],
        {"w": weights(4, 3, 3, 3), "k": np.float32(2)},
    )
    assert ops(normalise(proto)) == ["Conv", "Mul", "Relu"]


def test_constants_shapes_identities_and_taken_branches_disappear() -> None:
    then, other = (
        helper.make_graph([helper.make_node(op, ["a"], [out])], op, [], [info(out, None)])
        for op, out in (("Relu", "r"), ("Neg", "n"))
    )
    nodes = [
        conv(y="a"),
        helper.make_node("If", ["yes"], ["i"], then_branch=then, else_branch=other),
        helper.make_node("Dropout", ["i"], ["b"]),
        helper.make_node("Shape", ["b"], ["s"]),
        helper.make_node("Constant", [], ["i0"], value_int=0),
        helper.make_node("Gather", ["s", "i0"], ["n0"]),
        helper.make_node("Unsqueeze", ["n0", "zero"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["b", "target"], ["c"]),
        helper.make_node("Cast", ["c"], ["d"], to=TensorProto.FLOAT),
        helper.make_node("Identity", ["d"], ["y"]),
    ]
    proto = model_of(
        nodes,
        [info("x", ["n", 3, 8, 8])],
        [info("y", None)],
        {
            "w": weights(4, 3, 3, 3),
            "yes": np.array(True),
            "zero": np.array([0]),
            "rest": np.array([-1, 8], np.int64),
        },
    )
    model = normalise(proto)
    assert ops(model) == ["Conv", "Relu", "Reshape"]
    assert model.view.outputs[0].shape == (1, 32, 8)
    assert model.messages == ("dynamic batch fixed to 1",)
    x = picture(1, 3, 8, 8)
    np.testing.assert_array_equal(run(model.proto, x)[0], run(proto, x)[0])


def test_an_unrolled_random_chain_computes_the_same_after_folding() -> None:
    for seed in range(5):
        rng = random.Random(seed)
        nodes, last = [conv(y="t0")], "t0"
        for i in range(12):
            op = rng.choice(["Identity", "Relu", "Dropout", "Mul", "Transpose", "Add"])
            more = ["k"] if op in ("Mul", "Add") else []
            extra: dict[str, Any] = {"perm": [0, 1, 3, 2]} if op == "Transpose" else {}
            nodes.append(helper.make_node(op, [last, *more], [f"t{i + 1}"], **extra))
            last = f"t{i + 1}"
        proto = model_of(
            nodes,
            [info("x", [1, 3, 8, 8])],
            [info(last, None)],
            {"w": weights(4, 3, 3, 3), "k": np.float32(1.7)},
        )
        model = normalise(proto)
        assert not {"Identity", "Dropout"} & set(ops(model)[:-1])
        assert model.view.output_names == (last,)
        x = picture(1, 3, 8, 8)
        np.testing.assert_allclose(run(model.proto, x)[0], run(proto, x)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("opset", [9, 11, 12, 13, 16])
def test_old_operator_sets_are_raised_and_compute_the_same(opset: int) -> None:
    axes: dict[str, Any] = {"axes": [2]} if opset < 13 else {}
    nodes = [conv(y="a"), helper.make_node("LeakyRelu", ["a"], ["b"], alpha=0.1)]
    clip: dict[str, Any] = {"min": -0.5, "max": 0.5} if opset < 11 else {}
    nodes.append(helper.make_node("Clip", ["b"] if opset < 11 else ["b", "lo", "hi"], ["c"], **clip))
    nodes.append(helper.make_node("MaxPool", ["c"], ["d"], kernel_shape=[2, 2], strides=[2, 2]))
    nodes.append(helper.make_node("Unsqueeze", ["d"] + ([] if axes else ["two"]), ["y"], **axes))
    extra = {} if opset < 11 else {"lo": np.float32(-0.5), "hi": np.float32(0.5)}
    extra |= {} if axes else {"two": np.array([2])}
    proto = model_of(
        nodes,
        [info("x", [1, 3, 8, 8])],
        [info("y", None)],
        {"w": weights(4, 3, 3, 3), **extra},
        opset=opset,
        ir=7,
    )
    model = normalise(proto)
    assert model.view.opset == 17
    assert f"raised from {opset} to 17" in model.messages[0]
    x = picture(1, 3, 8, 8)
    np.testing.assert_allclose(run(model.proto, x)[0], run(proto, x)[0], rtol=1e-5, atol=1e-6)


def test_what_the_converter_refuses_is_raised_by_hand(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no adapter")

    nodes = [
        conv(y="a"),
        helper.make_node("Upsample", ["a", "scales"], ["b"], mode="nearest"),
        helper.make_node("Pad", ["b"], ["c"], pads=[0, 0, 1, 1, 0, 0, 1, 1], value=0.5),
        helper.make_node("Slice", ["c"], ["d"], axes=[2, 3], starts=[1, 0], ends=[9, 100]),
        helper.make_node("Squeeze", ["d"], ["e"], axes=[0]),
        helper.make_node("Split", ["e"], ["f", "g"], axis=0, split=[1, 3]),
        helper.make_node("Clip", ["g"], ["y"], max=0.4),
        helper.make_node("Softmax", ["f"], ["z"], axis=1),
    ]
    scales = np.array([1, 1, 2, 2], np.float32)
    proto = model_of(
        nodes,
        [info("x", [1, 3, 8, 8])],
        [info("y", None), info("z", None)],
        {"w": weights(4, 3, 3, 3), "scales": scales},
        opset=9,
        ir=4,
    )
    x = picture(1, 3, 8, 8)
    expected = run(proto, x)
    monkeypatch.setattr("avq.builder.graph.opset.version_converter.convert_version", refuse)
    model = normalise(proto)
    assert "by hand" in model.messages[0]
    for got, want in zip(run(model.proto, x), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert capfd.readouterr().err == ""


def test_float16_becomes_float32_and_says_so() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        conv("h", "a"),
        helper.make_node("Cast", ["a"], ["y"], to=TensorProto.FLOAT),
    ]
    w = weights(4, 3, 3, 3).astype(np.float16)
    model = normalise(model_of(nodes, [info("x", [1, 3, 8, 8])], [info("y", None)], {"w": w}))
    assert ops(model) == ["Conv"]
    assert "float16" in model.messages[0]
    assert model.view.constants[model.view.nodes[0].inputs[1]].dtype == np.float32


@pytest.mark.parametrize("op", ["QuantizeLinear", "QLinearConv", "ConvInteger", "QLinearAdd"])
def test_quantized_models_point_to_the_qat_strategy(op: str) -> None:
    proto = model_of([helper.make_node(op, ["x"], ["y"])], [info("x", [1, 3, 8, 8])], [info("y", None)])
    with pytest.raises(ModelError, match="quantized already") as error:
        normalise(proto)
    assert error.value.seen == op
    assert "--strategy qat" in error.value.fix


def test_names_are_unique_and_order_is_topological() -> None:
    nodes = [
        helper.make_node("Relu", ["b"], ["y"], name="same"),
        helper.make_node("Relu", ["a"], ["b"], name="same"),
        conv(y="a"),
    ]
    model = normalise(
        model_of(nodes, [info("x", [1, 3, 8, 8])], [info("y", None)], {"w": weights(4, 3, 3, 3)})
    )
    assert ops(model) == ["Conv", "Relu", "Relu"]
    assert len({node.name for node in model.view.nodes}) == 3
    assert all(node.name for node in model.view.nodes)


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([helper.make_node("Relu", ["nothing"], ["y"])], "nothing"),
        ([helper.make_node("Add", ["x", "y"], ["y"])], "depends on its own output"),
        ([helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["y"])], "written twice"),
        ([helper.make_node("Relu", ["x"], ["z"])], "'y'"),
        ([helper.make_node("Relu", ["x", "x"], ["y"])], "not a valid ONNX graph"),
    ],
)
def test_broken_graphs_are_refused_in_words(nodes: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        normalise(model_of(nodes, [info("x", [1, 3, 8, 8])], [info("y", None)]))


def test_the_digest_is_of_structure_and_weights() -> None:
    first, again = normalise(small()), normalise(small())
    assert first.view.digest == again.view.digest
    changed = small()
    changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights(4, 3, 3, 3, seed=9), "w"))
    assert normalise(changed).view.digest != first.view.digest
    named = small()
    helper.set_model_props(named, {"names": "a,b"})
    assert normalise(named).view.digest == first.view.digest
    assert normalise(named).view.metadata == {"names": "a,b"}


def test_the_view_knows_every_shape_and_reads_attributes_as_python_values() -> None:
    view = view_of(normalise(small()).proto)
    node = view.nodes[0]
    assert node.attributes["kernel_shape"] == [3, 3]
    assert view.shape("w") == (4, 3, 3, 3)
    assert view.shape(node.outputs[0]) == (1, 4, 8, 8)
    assert view.tensors["x"].dtype == "float32"
    with pytest.raises(ValueError, match="read-only"):
        view.constants["w"][0] = 0
