"""What the cards of one architecture lack: lint against the real builder, which refuses the whole model for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from avq.builder.lint import lint
from avq.commands.lint import lint_file
from avq.errors import RequestError
from tests.builder.lint.int4_graphs import convolutions, products
from tests.builder.lint.real_parser import real_parser

TARGET, TURING, LATER = "tensorrt-rtx", "sm75", "sm86"
DRAWN = 40


@pytest.fixture(scope="module")
def parser() -> Any:
    return real_parser()


def errors_of(model: onnx.ModelProto, *gpu_arch: str) -> set[str]:
    return {finding.id for finding in lint(model, TARGET, gpu_arch) if finding.severity == "error"}


def net(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shape: list[int]) -> onnx.ModelProto:
    """From "x" to "y", float32 both."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def through(kind: int, op_type: str, *constants: str, **attributes: Any) -> list[onnx.NodeProto]:
    """An operator that computes in ``kind``."""
    node, inside = helper.make_node, [f"{name}/in" for name in constants]
    casts = [node("Cast", [name], [f"{name}/in"], name=f"cast_{name}", to=kind) for name in constants]
    return [
        node("Cast", ["x"], ["x/in"], name="cast", to=kind),
        *casts,
        node(op_type, ["x/in", *inside], ["y/in"], name="wanted", **attributes),
        node("Cast", ["y/in"], ["y"], name="back", to=TensorProto.FLOAT),
    ]


FP32, FP16, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
SQUARE, KERNEL = {"w": weights(16, 16)}, {"w": weights(16, 16, 3, 3)}
LSTM = {"w": weights(1, 32, 16), "r": weights(1, 32, 8)}
PICTURE, ROWS = [1, 16, 8, 8], [8, 16]
CASES = {
    "float32 MatMul": (net(through(FP32, "MatMul", "w"), SQUARE, ROWS), "AVQ-L54"),
    "float16 MatMul": (net(through(FP16, "MatMul", "w"), SQUARE, ROWS), ""),
    "float32 Gemm": (net(through(FP32, "Gemm", "w"), SQUARE, ROWS), "AVQ-L54"),
    "float32 Einsum": (net(through(FP32, "Einsum", "w", equation="ij,jk->ik"), SQUARE, ROWS), "AVQ-L54"),
    "float32 LSTM": (net(through(FP32, "LSTM", "w", "r", hidden_size=8), LSTM, [4, 1, 16]), "AVQ-L54"),
    "float32 Conv": (net(through(FP32, "Conv", "w"), KERNEL, PICTURE), ""),
    "bfloat16 Relu": (net(through(BF16, "Relu"), {}, PICTURE), "AVQ-L53"),
    "bfloat16 MatMul": (net(through(BF16, "MatMul", "w"), SQUARE, ROWS), "AVQ-L53"),
    "float16 Relu": (net(through(FP16, "Relu"), {}, PICTURE), ""),
}


@pytest.mark.parametrize("name", CASES)
def test_what_turing_lacks_and_later_cards_have(parser: Any, name: str) -> None:
    model, rule = CASES[name]
    content = model.SerializeToString()
    assert errors_of(model, TURING) == ({rule} if rule else set())
    assert bool(parser.builds(content, TURING)) is bool(rule)
    assert errors_of(model) == errors_of(model, LATER) == set()
    assert parser.builds(content, LATER) == ""


@pytest.mark.slow
@pytest.mark.parametrize("draw", [products, convolutions])
def test_drawn_networks_that_later_cards_take(parser: Any, draw: Callable[[int], onnx.ModelProto]) -> None:
    verdicts: Counter[str] = Counter()
    for seed in range(DRAWN):
        model = draw(seed)
        if not errors_of(model):
            errors, said = errors_of(model, TURING), parser.builds(model.SerializeToString(), TURING)
            assert (seed, bool(errors)) == (seed, bool(said)), (errors, said)
            verdicts[min(errors, default="legal")] += 1
    assert verdicts["AVQ-L53"] >= DRAWN // 4
    assert verdicts["legal"] >= 2


def test_the_command_names_the_node_the_type_and_the_card(tmp_path: Path) -> None:
    model, _ = CASES["float32 Gemm"]
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    (found,) = lint_file(tmp_path / "net.onnx", TARGET, ["8.6", "7.5"])["findings"]
    assert (found["id"], found["node"], found["seen"]) == ("AVQ-L54", "wanted", "Gemm in float, sm75")
    assert "--gpu-arch" in found["fix"]
    assert lint_file(tmp_path / "net.onnx", TARGET)["findings"] == []
    assert lint_file(tmp_path / "net.onnx", "tensorrt", ["sm75"])["findings"] == [], (
        "other builders, other limits"
    )
    with pytest.raises(RequestError, match="'turing' is not a GPU architecture"):
        lint_file(tmp_path / "net.onnx", TARGET, ["turing"])
