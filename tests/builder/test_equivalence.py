"""Generated graphs: the normalised one computes what the file computes, or the build refuses it by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, inliner, numpy_helper

from avq.builder.equivalence import (
    TOLERANCE,
    check_folded_input,
    compare_graphs,
    drawn_tensors,
    normalise_checked,
)
from avq.builder.frontend.fold_input import fold_input, source_picture
from avq.builder.graph import model as normalising
from avq.builder.graph import opset as raising
from avq.builder.graph import standard
from avq.builder.graph.edit import attribute
from avq.builder.graph.model import normalise
from avq.engines import engine_by_name
from avq.errors import ModelError
from avq.preprocess import PRESETS

ENGINE = engine_by_name("onnxruntime")
OPSETS = range(7, 24)
RNG = np.random.default_rng(5)
WEIGHT = RNG.normal(0, 0.3, (4, 3, 3, 3)).astype(np.float32)

Node = onnx.NodeProto
Case = tuple[str, onnx.ModelProto]


def graph_of(
    nodes: list[Node], opset: int, arrays: dict[str, Any] | None = None, outputs: int = 1
) -> onnx.ModelProto:
    """Conv from x (1, 3, 16, 16) to c (1, 4, 16, 16), then ``nodes`` to y0, y1, ..."""
    weights = {"w": WEIGHT, **(arrays or {})}
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4, name="conv"), *nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_empty_tensor_value_info(f"y{i}") for i in range(outputs)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    for i, output in enumerate(graph.output):
        model.graph.output[i].CopyFrom(helper.make_tensor_value_info(output.name, TensorProto.FLOAT, None))
    return model


def resizes(opset: int) -> Iterator[Case]:
    for mode in ("nearest", "linear", "cubic") if opset > 10 else ("nearest", "linear"):
        for scale in (2.0, 1.25, 0.5):
            scales = np.array([1, 1, scale, scale], np.float32)
            name = f"{mode} x{scale} opset {opset}"
            if opset < 9:
                node = helper.make_node("Upsample", ["c"], ["y0"], mode=mode, scales=scales.tolist())
                if scale >= 1:
                    yield f"Upsample {name}", graph_of([node], opset)
            elif opset == 9:
                node = helper.make_node("Upsample", ["c", "s"], ["y0"], mode=mode)
                if scale >= 1:
                    yield f"Upsample {name}", graph_of([node], opset, {"s": scales})
            elif opset == 10:
                node = helper.make_node("Resize", ["c", "s"], ["y0"], mode=mode)
                yield f"Resize {name}", graph_of([node], opset, {"s": scales})
            else:
                node = helper.make_node("Resize", ["c", "", "s"], ["y0"], mode=mode)
                yield f"Resize {name}", graph_of([node], opset, {"s": scales})


def softmaxes(opset: int) -> Iterator[Case]:
    for op in ("Softmax", "LogSoftmax", "Hardmax"):
        for axis in (1, 2, 3, -1) if opset >= 11 else (1, 2, 3):
            node = helper.make_node(op, ["c"], ["y0"], axis=axis)
            yield f"{op} axis {axis} opset {opset}", graph_of([node], opset)
        yield f"{op} default opset {opset}", graph_of([helper.make_node(op, ["c"], ["y0"])], opset)


def others(opset: int) -> Iterator[Case]:
    for op in ("Relu", "Sigmoid", "HardSigmoid", "Elu", "Softplus", "GlobalAveragePool"):
        yield f"{op} opset {opset}", graph_of([helper.make_node(op, ["c"], ["y0"])], opset)
    stats = {"g": RNG.random(4), "b": RNG.random(4), "m": RNG.random(4), "v": RNG.random(4)}
    node = helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["y0"], epsilon=1e-3)
    arrays = {name: value.astype(np.float32) for name, value in stats.items()}
    yield f"BatchNormalization opset {opset}", graph_of([node], opset, arrays)
    if opset < 11:
        yield (
            f"Clip opset {opset}",
            graph_of([helper.make_node("Clip", ["c"], ["y0"], min=0.0, max=0.4)], opset),
        )
        pad = helper.make_node("Pad", ["c"], ["y0"], pads=[0, 0, 1, 1, 0, 0, 1, 1], value=0.3)
        yield f"Pad opset {opset}", graph_of([pad], opset)
    if opset < 13:
        split = helper.make_node("Split", ["c"], ["y0", "y1"], axis=1, split=[1, 3])
        yield f"Split opset {opset}", graph_of([split], opset, outputs=2)
        reduced = helper.make_node("ReduceSum", ["c"], ["y0"], axes=[2], keepdims=0)
        yield f"ReduceSum opset {opset}", graph_of([reduced], opset)
    if opset >= 10:
        nodes = [
            helper.make_node("Flatten", ["c"], ["flat"]),
            helper.make_node("TopK", ["flat", "k"], ["y0", "places"], name="top"),
            helper.make_node(
                "GatherElements" if opset >= 11 else "Gather", ["flat", "places"], ["y1"], axis=1
            ),
        ]
        yield f"TopK opset {opset}", graph_of(nodes, opset, {"k": np.array([7], np.int64)}, outputs=2)
    if opset < 12:
        yield (
            f"Dropout opset {opset}",
            graph_of([helper.make_node("Dropout", ["c"], ["y0"], ratio=0.5)], opset),
        )


def function_model(op: str, default: onnx.AttributeProto, nested: bool = False) -> onnx.ModelProto:
    """A call of a local function that leaves the attribute to the function's default."""
    inner = helper.make_node(
        op, ["a"], ["b"], **cast(Any, {"kernel_shape": [3, 3], "pads": [1] * 4} if op == "MaxPool" else {})
    )
    reference = inner.attribute.add()
    reference.name = reference.ref_attr_name = default.name
    reference.type = default.type
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("pkg", 1)]
    functions = [helper.make_function("pkg", "Inner", ["a"], ["b"], [inner], opsets[:1], [], [default])]
    if nested:
        call = helper.make_node("Inner", ["a"], ["b"], domain="pkg")
        functions.append(helper.make_function("pkg", "Outer", ["a"], ["b"], [call], opsets))
    model = graph_of([helper.make_node("Outer" if nested else "Inner", ["c"], ["y0"], domain="pkg")], 17)
    model.opset_import.append(helper.make_opsetid("pkg", 1))
    model.functions.extend(functions)
    return model


def renamed_model() -> onnx.ModelProto:
    """A call that names the attribute otherwise than the operator does, and leaves it to its default."""
    model = function_model("LeakyRelu", helper.make_attribute("alpha", 0.25))
    function = model.functions[0]
    function.node[0].attribute[0].ref_attr_name = function.attribute_proto[0].name = "slope"
    return model


def branch_model() -> onnx.ModelProto:
    """The calls stand in the branches of an If on the picture's mean."""
    model = function_model("LeakyRelu", helper.make_attribute("alpha", 0.25))
    call = model.graph.node[-1]
    bodies = []
    for name in ("then", "else"):
        inner = helper.make_node(call.op_type, ["c"], [name], domain=call.domain)
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        bodies.append(helper.make_graph([inner], name, [], [output]))
    nodes = [
        helper.make_node("ReduceMean", ["c"], ["mean"], keepdims=0),
        helper.make_node("Greater", ["mean", "zero"], ["bright"]),
        helper.make_node("If", ["bright"], ["y0"], then_branch=bodies[0], else_branch=bodies[1]),
    ]
    del model.graph.node[1:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0).reshape(()), "zero"))
    return model


def functions() -> Iterator[Case]:
    yield "renamed", renamed_model()
    yield "in If", branch_model()
    defaults = {
        "LeakyRelu": ("alpha", 0.25), "Elu": ("alpha", 0.3), "MaxPool": ("strides", [2, 2]), "Softmax": ("axis", 1),
        "Hardmax": ("axis", 2), "ReduceMax": ("keepdims", 0),
    }  # fmt: skip
    for op, (name, value) in defaults.items():
        for nested in (False, True):
            yield f"{op} nested {nested}", function_model(op, helper.make_attribute(name, value), nested)


CASES = [
    *(case for opset in OPSETS for cases in (resizes, softmaxes, others) for case in cases(opset)),
    *functions(),
]


def loads(model: onnx.ModelProto) -> bool:
    """False for operators that this onnxruntime does not have in the opset."""
    inputs = [np.zeros((1, 3, 16, 16), np.float32)]
    return compare_graphs(model, model, ENGINE, feeds=[(one, one) for one in inputs]).answer == "equal"


def test_there_are_over_four_hundred_graphs() -> None:
    assert len(CASES) >= 400


@pytest.mark.slow
def test_every_normalised_graph_computes_what_its_file_computes() -> None:
    refused, checked = [], 0
    for name, model in CASES:
        if not loads(model):
            continue
        checked += 1
        try:
            _, result = normalise_checked(model, ENGINE)
        except ModelError:
            refused.append(name)
            continue
        assert result.answer == "equal", (name, result)
        assert result.difference <= TOLERANCE, (name, result)
    assert checked >= 380
    assert refused == []


@pytest.mark.parametrize(
    ("name", "case"), [c for c in CASES if "Upsample linear" in c[0] or "Resize linear" in c[0]][:4]
)
def test_the_converter_changes_old_resizes_and_that_is_found(name: str, case: onnx.ModelProto) -> None:
    converted = normalise(case)
    assert compare_graphs(case, converted.proto, ENGINE).answer == "different", name
    kept, result = normalise_checked(case, ENGINE)
    assert result.answer == "equal"
    assert any("adapters" in message for message in kept.messages)


def failing(model: onnx.ModelProto) -> str:
    with pytest.raises(ModelError) as caught:
        normalise_checked(model, ENGINE)
    return f"{caught.value.what} {caught.value.seen}"


@pytest.mark.parametrize("name", ["nearest x1.25 opset 10", "linear x2.0 opset 10"])
def test_a_converter_without_a_second_way_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The converter's own answer for old sampling, where no adapter stands beside it."""
    real = raising.raise_opset
    monkeypatch.setattr(normalising, "raise_opset", lambda model, converter=True: real(model, converter=True))
    case = next(model for label, model in CASES if label == f"Resize {name}")
    text = failing(case)
    assert "raising the operator set" in text and "Resize" in text


@pytest.mark.parametrize("axis", [1, 2])
def test_the_converters_hardmax_is_named(axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = raising.raise_opset
    monkeypatch.setattr(normalising, "raise_opset", lambda model, converter=True: real(model, converter=True))
    text = failing(next(model for label, model in CASES if label == f"Hardmax axis {axis} opset 11"))
    assert "raising the operator set" in text and "Hardmax" in text


def test_a_wrong_group_normalization_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales of opset 18 taken for scales of another group."""

    def swapped(writer: Any) -> list[Node]:
        writer._node.input[1], writer._node.input[2] = writer._node.input[2], writer._node.input[1]
        return group_norm(writer)

    group_norm = standard._Writer.group_norm
    monkeypatch.setattr(standard._Writer, "group_norm", swapped)
    node = helper.make_node("GroupNormalization", ["c", "s", "b"], ["y0"], num_groups=2, name="norm")
    arrays = {"s": np.array([1, 2], np.float32), "b": np.array([3, 4], np.float32)}
    assert "rewriting fused operators" in failing(graph_of([node], 18, arrays))


@pytest.mark.parametrize("kind", ["gain", "shift"])
def test_a_wrong_input_fold_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph_of([helper.make_node("Relu", ["c"], ["y0"])], 17)
    source, _ = normalise_checked(model, ENGINE)
    spec = PRESETS["imagenet"](16, 16)
    tensors = drawn_tensors(helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 3, 16, 16]))
    feeds = [(source_picture(source, tensor, spec), tensor) for tensor in tensors]
    right = fold_input(source, spec)
    assert check_folded_input(model, source, right, feeds, ENGINE).answer == "equal"
    wrong = replace(spec, std=(0.2,) * 3) if kind == "gain" else replace(spec, mean=(0.5,) * 3)
    with pytest.raises(ModelError, match="folding the preprocessing into the input"):
        check_folded_input(model, source, fold_input(source, wrong), feeds, ENGINE)


def test_a_fault_that_real_pictures_alone_show_is_named() -> None:
    """Drawn inputs leave a branch out that a bright picture takes."""
    nodes = [
        helper.make_node("ReduceMin", ["x"], ["darkest"], keepdims=0),
        helper.make_node("Greater", ["darkest", "level"], ["bright"]),
        helper.make_node("Cast", ["bright"], ["one"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["c", "one"], ["y0"], name="last"),
    ]
    level = np.float32(0.5).reshape(())
    model = graph_of(nodes, 17, {"level": level})
    source, _ = normalise_checked(model, ENGINE)
    wrong = graph_of(nodes, 17, {"level": level + np.float32(0.45)})
    assert compare_graphs(model, wrong, ENGINE).answer == "equal"
    picture = np.full((1, 3, 16, 16), 0.9, np.float32)
    changed = replace(source, proto=wrong)
    with pytest.raises(ModelError, match="folding the preprocessing into the input"):
        check_folded_input(model, source, changed, [(picture, picture)], ENGINE)


def test_lost_defaults_of_functions_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalising, "inline_functions", inliner.inline_local_functions)
    for name, model in functions():
        assert "inlining functions" in failing(model), name


def test_a_wrong_adapter_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the adapter for asymmetric sampling neither way raises the operator set rightly."""

    def half_pixel(graph: onnx.GraphProto, node: Node) -> None:
        raising._resize(graph, node)
        for item in node.attribute:
            if item.name == "coordinate_transformation_mode":
                item.s = b"half_pixel"

    monkeypatch.setitem(raising._ADAPTERS, "Resize", (11, half_pixel))
    case = next(model for name, model in CASES if name == "Resize linear x1.25 opset 10")
    text = failing(case)
    assert "raising the operator set" in text and "Resize" in text


@pytest.mark.parametrize("step", ["fold", "fold_norms"])
def test_a_wrong_fold_is_found(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """A fold that damages the convolution's weights by one percent is named."""
    real: Callable[..., Any] = getattr(normalising, step)

    def damaged(first: Any) -> Any:
        result = real(first)
        graph = first if step == "fold_norms" else result.graph
        for tensor in graph.initializer:
            if tensor.name == "w" or list(tensor.dims) == [4, 3, 3, 3]:
                tensor.CopyFrom(
                    numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name)
                )
        return result

    monkeypatch.setattr(normalising, step, damaged)
    case = next(model for name, model in CASES if name == "BatchNormalization opset 17")
    assert "fold" in failing(case)


def test_random_operators_and_files_that_do_not_load_are_unknown() -> None:
    noise = helper.make_node("RandomNormalLike", ["c"], ["y0"])
    assert compare_graphs(graph_of([noise], 17), graph_of([noise], 17), ENGINE).answer == "unknown"
    strange = graph_of([helper.make_node("Nonexistent", ["c"], ["y0"], domain="com.example")], 17)
    plain = graph_of([helper.make_node("Relu", ["c"], ["y0"])], 17)
    result = compare_graphs(strange, plain, ENGINE)
    assert result.answer == "unknown" and result.detail


def test_near_equal_scores_may_be_chosen_in_another_order() -> None:
    """The choice of the file is given to the graph: a swap of near-equal values is no difference."""
    nodes = [
        helper.make_node("Flatten", ["c"], ["flat"]),
        helper.make_node("Add", ["flat", "tiny"], ["scores"], name="add"),
        helper.make_node("TopK", ["scores", "k"], ["y0", "places"], name="top"),
        helper.make_node("GatherElements", ["index", "places"], ["y1"], axis=1),
    ]
    arrays = {
        "w": np.zeros_like(WEIGHT),
        "k": np.array([900], np.int64),
        "index": np.arange(1024, dtype=np.float32)[None],
        "tiny": 1.0 + RNG.random((1, 1024)).astype(np.float32) * 1e-7,
    }
    source = graph_of(nodes, 17, arrays, outputs=2)
    arrays["tiny"] = 1.0 + RNG.random((1, 1024)).astype(np.float32) * 1e-7
    assert compare_graphs(source, graph_of(nodes, 17, arrays, outputs=2), ENGINE).answer == "equal"
    arrays["tiny"] = arrays["tiny"] + np.float32(0.01) * RNG.random((1, 1024)).astype(np.float32)
    assert compare_graphs(source, graph_of(nodes, 17, arrays, outputs=2), ENGINE).answer == "different"


def test_the_default_of_a_function_stands_at_the_call() -> None:
    model = function_model("LeakyRelu", helper.make_attribute("alpha", 0.25))
    inlined = normalising.inline_functions(model)
    leaky = next(node for node in inlined.graph.node if node.op_type == "LeakyRelu")
    assert attribute(leaky, "alpha") == pytest.approx(0.25)
