"""Every rule finds what it is for, and clean files stay clean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from avq.builder.lint import RULES, lint
from avq.builder.lower import lower
from avq.errors import RequestError
from avq.types import Edge
from tests.builder.lower.lowering_nets import data_point, peaks, simple_plan, small_net, with_points


def _ids(model: onnx.ModelProto, target: str = "tensorrt") -> set[str]:
    return {finding.id for finding in lint(model, target)}


def _chain(
    *,
    zero: np.ndarray | None,
    scale: np.ndarray,
    opset: int = 17,
    axis: int = 1,
    between: str = "",
    behind: str = "DequantizeLinear",
) -> onnx.ModelProto:
    """x -> QuantizeLinear -> [between] -> behind -> Relu -> y, with the parameters under test."""
    constants = [numpy_helper.from_array(scale, "s")]
    parameters = ["s"]
    if zero is not None:
        constants.append(numpy_helper.from_array(zero, "z"))
        parameters.append("z")
    attributes: dict[str, Any] = {"axis": axis} if scale.ndim else {}
    nodes = [helper.make_node("QuantizeLinear", ["x", *parameters], ["q"], name="Q", **attributes)]
    last = "q"
    if between:
        nodes.append(helper.make_node(between, ["q"], ["m"], name="mid"))
        last = "m"
    if behind == "DequantizeLinear":
        nodes.append(helper.make_node(behind, [last, *parameters], ["d"], name="DQ", **attributes))
    else:
        nodes.append(helper.make_node(behind, [last], ["d"], name="reader", to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Relu", ["d"], ["y"], name="relu"))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 2, 2])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


ONE, S8 = np.float32(0.1).reshape(()), np.zeros((), np.int8)
FOUR, S8_FOUR = np.full(4, 0.1, np.float32), np.zeros(4, np.int8)

CASES = {
    "AVQ-L01": _chain(zero=np.uint8(128).reshape(()), scale=ONE),
    "AVQ-L02": _chain(zero=np.int8(3).reshape(()), scale=ONE),
    "AVQ-L04": _chain(zero=S8, scale=np.float32(1e-41).reshape(())),
    "AVQ-L05": _chain(zero=S8_FOUR, scale=FOUR),
    "AVQ-L06": _chain(zero=S8_FOUR, scale=FOUR, opset=11),
    "AVQ-L07": _chain(zero=S8, scale=ONE, behind="Cast"),
    "AVQ-L08": _chain(zero=S8, scale=ONE, between="Clip"),
    "AVQ-L11": _chain(zero=None, scale=ONE),
    "AVQ-L13": _chain(zero=S8, scale=np.float16(0.1).reshape(())),
    "AVQ-L14": _chain(zero=np.int16(0).reshape(()), scale=ONE),
}


@pytest.mark.parametrize("rule", sorted(CASES))
def test_a_rule_finds_its_own_case(rule: Any) -> None:
    assert rule in _ids(CASES[rule])


def test_a_legal_pair_has_no_findings() -> None:
    assert _ids(_chain(zero=S8, scale=ONE)) == set()


def test_weights_along_the_wrong_axis_and_coarse_depthwise_weights() -> None:
    net = small_net()
    plan = simple_plan(net)
    wrong = with_points(
        plan, _reshaped(plan, "up.w", axis=0, channels=16), _reshaped(plan, "depth.w", axis=None)
    )
    model = onnx.ModelProto.FromString(lower(net, wrong, "s8"))
    assert {(f.id, f.node) for f in lint(model, "openvino") if f.id in ("AVQ-L18", "AVQ-L19")} == {
        ("AVQ-L18", "up"),
        ("AVQ-L19", "depth"),
    }


def _reshaped(plan: Any, tensor: Any, *, axis: Any, channels: int = 0) -> Any:
    from dataclasses import replace

    point = plan.by_edge[Edge(tensor)]
    shape = () if axis is None else (channels,)
    scale = np.full(shape, point.scale.max(), np.float32)
    return replace(point, scale=scale, zero_point=np.zeros(shape, np.int64), axis=axis)


def test_placement_rules_warn() -> None:
    net = small_net()
    tensors = ["x1", "x2", "x7", "boxes"]
    ranges = peaks(net, tensors)
    edges = [Edge("x1"), Edge("x2"), Edge("x7"), Edge("boxes")]
    points = [data_point(edge, *ranges[edge.tensor]) for edge in edges]
    model = onnx.ModelProto.FromString(lower(net, with_points(simple_plan(net), *points), "s8"))
    found = {(finding.id, finding.node) for finding in lint(model, "tensorrt")}
    assert ("AVQ-L15", "cat") in found
    assert ("AVQ-L17", "relu") in found
    assert any(rule == "AVQ-L16" for rule, _ in found)
    assert all(f.severity == "warning" for f in lint(model, "tensorrt"))


def test_the_signed_file_is_for_tensorrt_and_the_unsigned_one_for_cpus() -> None:
    net = small_net()
    plan = simple_plan(net)
    signed, unsigned = (onnx.ModelProto.FromString(lower(net, plan, e)) for e in ("s8", "u8"))
    assert _ids(signed, "tensorrt") == set()
    assert _ids(unsigned, "cpu") == set()
    assert _ids(signed, "cpu") == {"AVQ-L12"}
    assert _ids(unsigned, "tensorrt") == {"AVQ-L01", "AVQ-L02"}


def test_integer_operators_computed_scales_and_training_dialects() -> None:
    node = helper.make_node
    tensors = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "s", "y")]
    graph = helper.make_graph(
        [
            node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"], name="dyn"),
            node("DequantizeLinear", ["q", "qs", "qz"], ["y"], name="late"),
            node("Quant", ["x", "s"], ["t"], name="brevitas", domain="onnx.brevitas"),
        ],
        "g",
        tensors[:2],
        tensors[2:],
    )
    found = {(f.id, f.node) for f in lint(helper.make_model(graph), "tensorrt")}
    assert {("AVQ-L10", "dyn"), ("AVQ-L09", "late"), ("AVQ-L08", "late"), ("AVQ-L20", "brevitas")} <= found


def test_operators_of_onnxruntime_are_no_fault_on_a_cpu_and_hide_nothing_behind_them() -> None:
    node = helper.make_node
    value = helper.make_tensor_value_info
    nodes = [
        node("FastGelu", ["x"], ["g"], name="gelu", domain="com.microsoft"),
        node("Relu", ["g"], ["r"], name="relu"),
        node("Add", ["r", "x"], ["y"], name="add"),
    ]
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, [1, 4])], [value("y", TensorProto.FLOAT, [1, 4])]
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    )
    assert _ids(model, "onnxruntime") == set()
    assert {(f.id, f.node) for f in lint(model, "tensorrt")} == {("AVQ-L43", "gelu")}
    del model.graph.node[2].input[1:]
    assert _ids(model, "onnxruntime") == {"AVQ-L40", "AVQ-L41"} or _ids(model, "onnxruntime") == {"AVQ-L40"}


def test_an_unknown_target_is_refused_with_the_nearest() -> None:
    with pytest.raises(RequestError, match="did you mean 'tensorrt'"):
        lint(_chain(zero=S8, scale=ONE), "tensorrtt")


def test_ids_are_unique_and_every_rule_says_what_to_do() -> None:
    assert [rule.id for rule in RULES] == [f"AVQ-L{n:02d}" for n in range(1, len(RULES) + 1)]
    assert all(rule.fix and rule.what and rule.severity in ("error", "warning") for rule in RULES)


@pytest.mark.material
def test_real_files_of_other_tools(material: Path) -> None:
    read = {p.name: onnx.load(p) for p in (material / "quantized").glob("*.onnx")}
    assert {"AVQ-L02", "AVQ-L03"} <= _ids(read["twinlitenet_ort_static.onnx"])
    assert "AVQ-L10" in _ids(read["twinlitenet_ort_dynamic.onnx"])
    assert {"AVQ-L01", "AVQ-L02"} <= _ids(read["polygraphy_qdq_conv.onnx"])
    assert "AVQ-L20" in _ids(read["qonnx_espcn_subpixel_quant.onnx"])
    assert _ids(read["twinlitenet_float_parent.onnx"]) == set()
    errors = {
        f.id for f in lint(read["retinaface_320_vitisai_qdq.onnx"], "tensorrt") if f.severity == "error"
    }
    assert errors == set()
