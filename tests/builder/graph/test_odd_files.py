"""Files that onnxruntime runs and libraries call damaged: each gives its own numbers, or the true reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from avq.builder.equivalence import TOLERANCE, compare_graphs, normalise_checked
from avq.builder.graph.model import FloatModel, normalise
from avq.engines import engine_by_name
from avq.errors import ModelError
from tests.builder.graph.graph_case import conv, info, model_of, ops, weights

ENGINE = engine_by_name("onnxruntime")
RNG = np.random.default_rng(3)
FLOAT = TensorProto.FLOAT


def checked(proto: onnx.ModelProto) -> FloatModel:
    """The normalised model, whose numbers are the file's."""
    model, result = normalise_checked(proto, ENGINE)
    assert result.answer == "equal", result
    half = proto.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT16
    assert result.difference <= (1e-3 if half else TOLERANCE)
    return model


def refusal(proto: onnx.ModelProto) -> ModelError:
    with pytest.raises(ModelError) as caught:
        normalise_checked(proto, ENGINE)
    return caught.value


def net(
    nodes: list[onnx.NodeProto], arrays: dict[str, Any] | None = None, *, opset: int = 17, **k: Any
) -> onnx.ModelProto:
    """Conv from x (1, 3, 8, 12) to c (1, 4, 8, 12), then ``nodes`` to y."""
    inputs = [info("x", [1, 3, 8, 12], k.get("kind", FLOAT)), *k.get("inputs", ())]
    first = k.get("first", [conv(y="c")])
    arrays = {"w": weights(4, 3, 3, 3), **(arrays or {})}
    proto = model_of([*first, *nodes], inputs, [info("y", None)], arrays)
    proto.opset_import[0].version = opset
    return proto


# Domains, operators and weights.


def test_the_default_domain_may_be_spelt_out() -> None:
    proto = net([helper.make_node("Relu", ["c"], ["y"], domain="ai.onnx")])
    for node in proto.graph.node:
        node.domain = "ai.onnx"
    proto.opset_import[0].domain = "ai.onnx"
    assert [node.domain for node in checked(proto).proto.graph.node] == ["", ""]
    proto.opset_import[0].domain = ""  # nodes alone
    checked(proto)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_normalization_of_opset_18_scales_each_group(groups: int) -> None:
    arrays = {"s": RNG.random(groups).astype(np.float32), "b": RNG.random(groups).astype(np.float32)}
    node = helper.make_node("GroupNormalization", ["c", "s", "b"], ["y"], num_groups=groups, epsilon=0.01)
    model = checked(net([node], arrays, opset=18))
    assert "GroupNormalization" not in ops(model)


def test_group_normalization_of_opset_21_scales_each_channel() -> None:
    arrays = {"s": RNG.random(4).astype(np.float32), "b": RNG.random(4).astype(np.float32)}
    checked(
        net([helper.make_node("GroupNormalization", ["c", "s", "b"], ["y"], num_groups=2)], arrays, opset=21)
    )


def test_a_norm_behind_a_convolution_with_a_computed_bias_is_not_folded() -> None:
    stats = {name: RNG.random(4).astype(np.float32) + 0.5 for name in "gbmv"}
    first = [
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "bias"], ["computed"]),
        helper.make_node("Conv", ["x", "w", "computed"], ["c"], pads=[1] * 4),
    ]
    norm = helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["y"])
    proto = net([norm], {"bias": RNG.random(4).astype(np.float32), **stats}, first=first)
    assert "BatchNormalization" in ops(checked(proto))


@pytest.mark.parametrize("coordinates", [False, True])
@pytest.mark.parametrize("constant", [False, True])
def test_sparse_weights_are_written_out(coordinates: bool, constant: bool) -> None:
    places = np.array([[0, 1], [3, 0]] if coordinates else [1, 6], np.int64)
    values = numpy_helper.from_array(np.array([2.5, -1.5], np.float32), "k")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(places, "k_places"), [4, 2])
    nodes = [
        helper.make_node("Reshape", ["k", "shape"], ["column"]),
        helper.make_node("Mul", ["c", "column"], ["y"]),
    ]
    if constant:
        nodes.insert(0, helper.make_node("Constant", [], ["k"], sparse_value=sparse))
    proto = net(nodes, {"shape": np.array([2, 4, 1, 1], np.int64)})
    if not constant:
        proto.graph.sparse_initializer.append(sparse)
    model = normalise(proto)
    assert not model.proto.graph.sparse_initializer
    folded = next(t for t in model.proto.graph.initializer if list(t.dims) == [2, 4, 1, 1])
    expected = np.zeros((4, 2), np.float32)
    expected.reshape(-1)[[1, 6]] = 2.5, -1.5
    np.testing.assert_array_equal(numpy_helper.to_array(folded).reshape(4, 2), expected)
    _, result = normalise_checked(proto, ENGINE)
    assert result.answer == "equal"


def microsoft(op: str, inputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, ["y"], domain="com.microsoft", **attributes)


FUSED: dict[str, onnx.NodeProto] = {
    "relu": microsoft("FusedConv", ["c", "k", "b"], activation="Relu", pads=[1] * 4),
    "no bias": microsoft("FusedConv", ["c", "k"], activation="Sigmoid", pads=[1] * 4, strides=[2, 2]),
    "leaky": microsoft("FusedConv", ["c", "k"], activation="LeakyRelu", activation_params=[0.2]),
    "clip": microsoft("FusedConv", ["c", "k"], activation="Clip", activation_params=[-0.1, 0.3]),
    "hard": microsoft("FusedConv", ["c", "k"], activation="HardSigmoid", activation_params=[0.1, 0.4]),
    "sum": microsoft("FusedConv", ["c", "k", "b", "c"], activation="Relu", pads=[1] * 4),
    "gelu": microsoft("Gelu", ["c"]),
    "quick gelu": microsoft("QuickGelu", ["c"], alpha=1.5),
    "bias gelu": microsoft("BiasGelu", ["c", "row"]),
    "matmul": microsoft("FusedMatMul", ["c", "columns"], alpha=0.3),
}


@pytest.mark.parametrize("name", FUSED)
def test_fused_operators_of_onnxruntime_are_written_out(name: str) -> None:
    arrays = {
        "k": weights(4, 4, 3, 3),
        "b": RNG.normal(size=4).astype(np.float32),
        "row": RNG.normal(size=12).astype(np.float32),
        "columns": RNG.normal(size=(12, 5)).astype(np.float32),
    }
    proto = net([FUSED[name]], arrays)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model = checked(proto)
    assert {node.domain for node in model.proto.graph.node} == {""}


def test_an_operator_that_stays_fused_keeps_its_numbers() -> None:
    proto = net([microsoft("FusedMatMul", ["c", "columns"], transB=1)], {"columns": weights(5, 12)})
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert "FusedMatMul" in ops(checked(proto))


FOREIGN: list[tuple[str, str, str, str]] = [
    ("TRT", "EfficientNMS_TRT", "TensorRT", "without NMS"),
    ("", "BatchedNMSDynamic_TRT", "TensorRT", "without NMS"),
    ("trt.plugins", "ROIAlign_TRT", "TensorRT", "plugins"),
    ("mmdeploy", "MMCVModulatedDeformConv2d", "mmdeploy", "post-processing"),
    ("mmdeploy", "TRTBatchedNMS", "mmdeploy", "without NMS"),
    ("com.microsoft.nchwc", "Conv", "one kind of processor", "before onnxruntime"),
    ("ai.onnx.contrib", "DecodeImage", "onnxruntime-extensions", "post-processing"),
    ("org.pytorch.aten", "ATen", "PyTorch", "standard operators"),
    ("com.example", "Strange", "custom", "standard operators"),
    ("", "Strange", "custom", "standard operators"),
]


@pytest.mark.parametrize(("domain", "op", "owner", "fix"), FOREIGN)
def test_operators_that_onnxruntime_lacks_are_named(domain: str, op: str, owner: str, fix: str) -> None:
    proto = net([helper.make_node(op, ["c"], ["y"], domain=domain, name="last")])
    if domain:
        proto.opset_import.append(helper.make_opsetid(domain, 1))
    error = refusal(proto)
    assert op in error.what and owner in error.what
    assert "'last'" in error.seen
    assert fix in error.fix


def test_an_unknown_operator_of_a_known_domain_is_found_when_it_is_opened() -> None:
    proto = net([microsoft("NoSuchOperator", ["c"])])
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    error = refusal(proto)
    assert "cannot run the model" in error.what and "NoSuchOperator" in error.seen


def test_outputs_without_a_declared_shape_and_a_dropout_of_opset_11() -> None:
    proto = net([helper.make_node("Dropout", ["c"], ["y"], ratio=0.5)], opset=11)
    model = checked(proto)
    assert ops(model) == ["Conv"]
    assert model.view.outputs[0].shape == (1, 4, 8, 12)


def test_an_output_whose_rank_depends_on_the_picture_needs_no_shape() -> None:
    nodes = [helper.make_node("NonZero", ["c"], ["places"]), helper.make_node("Squeeze", ["places"], ["y"])]
    proto = net(nodes)
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    model, _ = normalise_checked(proto, ENGINE)
    assert compare_graphs(proto, model.proto, ENGINE).answer == "equal"


def test_a_constant_output_keeps_the_shapes_of_what_reads_it() -> None:
    proto = net([helper.make_node("Relu", ["c"], ["y"])])
    proto.graph.output.append(info("w", [4, 3, 3, 3]))
    assert checked(proto).view.tensors["c"].shape == (1, 4, 8, 12)


def test_sizes_that_a_later_fold_fixes_are_not_stale() -> None:
    """Shape, Gather, Tile, GatherElements behind a repeat: sizes are known after the second round only."""
    nodes = [
        helper.make_node("Reshape", ["c", "rows"], ["r"]),
        helper.make_node("Equal", ["raw", "open"], ["is_open"]),
        helper.make_node("Where", ["is_open", "ones", "raw"], ["twice"]),
        helper.make_node("Expand", ["pair", "twice"], ["repeated"]),
        helper.make_node("Concat", ["repeated", "repeated"], ["box_sizes"], axis=-1),
        helper.make_node("Mul", ["r", "box_sizes"], ["scaled"]),
        helper.make_node("ReduceMax", ["scaled"], ["best"], axes=[-1], keepdims=0),
        helper.make_node("TopK", ["best", "k"], ["values", "places"], axis=1, name="top"),
        helper.make_node("Shape", ["scaled"], ["shape"]),
        helper.make_node("Gather", ["shape", "last"], ["columns"]),
        helper.make_node("Concat", ["one", "one", "columns"], ["times"], axis=0),
        helper.make_node("Unsqueeze", ["places", "axis"], ["column"]),
        helper.make_node("Tile", ["column", "times"], ["index"]),
        helper.make_node("GatherElements", ["scaled", "index"], ["y"], axis=1),
    ]
    whole = {
        "rows": [1, -1, 4], "raw": [1, -1, -1], "open": [-1] * 3, "ones": [1] * 3, "k": [5], "last": [2], "one": [1],
        "axis": [-1],
    }  # fmt: skip
    arrays = {name: np.array(value, np.int64) for name, value in whole.items()}
    arrays["pair"] = np.array([[[2.0, 3.0]]], np.float32)
    model = checked(net(nodes, arrays))
    assert model.view.outputs[0].shape == (1, 5, 4)
    assert "Shape" not in ops(model)


# Inputs.

KINDS: dict[int, str] = {
    TensorProto.DOUBLE: "float32", TensorProto.BFLOAT16: "float32", TensorProto.FLOAT16: "float32",
    TensorProto.INT8: "uint8", TensorProto.INT16: "uint8", TensorProto.UINT16: "uint8", TensorProto.INT32: "uint8",
    TensorProto.UINT32: "uint8", TensorProto.INT64: "uint8", TensorProto.UINT8: "uint8",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_any_number_type_are_taken(kind: int) -> None:
    first = [helper.make_node("Cast", ["x"], ["xf"], to=FLOAT), conv("xf", "c")]
    model = checked(net([helper.make_node("Relu", ["c"], ["y"])], first=first, kind=kind))
    assert model.view.inputs[0].dtype == KINDS[kind]
    assert model.offset == (128 if kind == TensorProto.INT8 else 0)


def test_pictures_are_no_truth_values_and_no_texts() -> None:
    first = [helper.make_node("Cast", ["x"], ["xf"], to=FLOAT), conv("xf", "c")]
    error = refusal(net([helper.make_node("Relu", ["c"], ["y"])], first=first, kind=TensorProto.BOOL))
    assert "bool" in error.what


def test_a_network_in_float64_is_refused_as_such() -> None:
    proto = net([helper.make_node("Relu", ["c"], ["y"])], {"w": weights(4, 3, 3, 3).astype(np.float64)})
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    error = refusal(proto)
    assert "float64" in error.what and "float32" in error.fix


def boxes_net(
    nodes: list[onnx.NodeProto], *inputs: onnx.ValueInfoProto, size: bool = True
) -> onnx.ModelProto:
    """Rows (1, 96, 4) of x, y, x, y in r, then ``nodes`` to y."""
    rows = helper.make_node("Reshape", ["c", "rows"], ["r"])
    arrays = {
        "rows": np.array([1, -1, 4], np.int64), "turned": np.array([1, 0, 1, 0], np.int64), "half": np.float32(0.5),
        "straight": np.array([0, 1, 0, 1], np.int64), "axis": np.array([1], np.int64),
    }  # fmt: skip
    return net([rows, *nodes], arrays, inputs=inputs)


def times(name: str, order: str, op: str = "Mul", kind: int = FLOAT) -> list[onnx.NodeProto]:
    """``op`` of the rows with a pair, its numbers in that order."""
    cast = [helper.make_node("Cast", [name], [f"{name}_f"], to=FLOAT)] if kind != FLOAT else []
    return [
        *cast,
        helper.make_node("Gather", [f"{name}_f" if cast else name, order], [f"{name}_4"], axis=1),
        helper.make_node("Unsqueeze", [f"{name}_4", "axis"], [f"{name}_5"]),
        helper.make_node(op, ["r", f"{name}_5"], ["y"]),
    ]


@pytest.mark.parametrize("kind", [FLOAT, TensorProto.INT32, TensorProto.INT64, TensorProto.DOUBLE])
@pytest.mark.parametrize("name", ["scale_factor", "third_input"])
def test_what_boxes_are_divided_by_is_bound_to_one(name: str, kind: int) -> None:
    model = checked(boxes_net(times(name, "turned", "Div", kind), info(name, [1, 2], kind)))
    np.testing.assert_array_equal(model.bound[name], [[1, 1]])


@pytest.mark.parametrize("kind", [FLOAT, TensorProto.INT32, TensorProto.INT64])
@pytest.mark.parametrize(
    ("name", "order", "wanted"),
    [
        ("im_shape", "turned", [8, 12]),
        ("orig_target_sizes", "straight", [12, 8]),
        ("orig_target_sizes", "turned", [8, 12]),
        ("second", "turned", [8, 12]),
        ("second", "straight", [12, 8]),
    ],
)
def test_sizes_are_bound_in_the_order_of_their_use(
    name: str, order: str, wanted: list[int], kind: int
) -> None:
    model = checked(boxes_net(times(name, order, "Mul", kind), info(name, ["n", 2], kind)))
    np.testing.assert_array_equal(model.bound[name], [wanted])


def test_paddles_three_inputs_are_bound_together() -> None:
    nodes = [
        helper.make_node("Div", ["im_shape", "scale_factor"], ["origin"]),
        helper.make_node("Add", ["origin", "half"], ["above"]),
        helper.make_node("Floor", ["above"], ["whole"]),
        *times("whole", "turned"),
    ]
    model = checked(boxes_net(nodes, info("im_shape", [1, 2]), info("scale_factor", [1, 2])))
    np.testing.assert_array_equal(model.bound["im_shape"], [[8, 12]])
    assert [i.name for i in model.view.inputs] == ["x"]


def test_inputs_that_nothing_reads_are_dropped() -> None:
    proto = net(
        [helper.make_node("Relu", ["c"], ["y"])], inputs=[info("im_shape", [1, 2]), info("z", [1, 3, 9, 9])]
    )
    assert [i.name for i in checked(proto).view.inputs] == ["x"]


def test_an_order_that_does_not_show_is_refused() -> None:
    nodes = [
        helper.make_node("Gather", ["pair", "axis"], ["one_number"], axis=1),
        helper.make_node("Mul", ["r", "one_number"], ["y"]),
    ]
    error = refusal(boxes_net(nodes, info("pair", [1, 2])))
    assert "'pair'" in error.what and "(width, height)" in error.what


def test_an_input_of_unknown_meaning_is_named() -> None:
    nodes = [helper.make_node("Exp", ["flow"], ["e"]), helper.make_node("Mul", ["c", "e"], ["y"])]
    error = refusal(net(nodes, inputs=[info("flow", [1, 4, 1, 1])]))
    assert "'flow'" in error.what and "3, 8, 12" in error.seen
