"""TensorRT for RTX on a machine without a GPU: it really parses, really builds, and says plainly what it cannot."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from avq.builder.cross_compile.fp16 import activation_peaks, to_fp16
from avq.builder.graph.view import view_of
from avq.builder.lint import lint
from avq.builder.lower import lower
from avq.contract.engine_suite import sample_model
from avq.engines import engine_by_name, tensorrt_rtx
from avq.engines.cuda import Card
from avq.engines.tensorrt_rtx import TensorRtRtxEngine
from avq.errors import MachineError, ModelError, RequestError
from avq.types import SessionOptions
from tests.builder.lower.lowering_nets import picture, simple_plan, small_net
from tests.conftest import ROOT

ENGINE = TensorRtRtxEngine()
HERE = pytest.mark.skipif(not ENGINE.status().available, reason=f"tensorrt-rtx: {ENGINE.status().why}")
NO_GPU = pytest.mark.skipif(ENGINE.status().can_run, reason="this machine has a GPU")


@HERE
def test_it_builds_without_a_gpu_and_says_so() -> None:
    status = ENGINE.status()
    assert status.can_build and status.version
    assert "sm89" in status.why


@HERE
@pytest.mark.parametrize("architecture", ["sm75", "sm86", "sm89", "sm120"])
def test_a_float_model_becomes_an_engine_for_each_architecture(architecture: str) -> None:
    built = ENGINE.compile(sample_model(), architecture)
    assert built.architecture == architecture and len(built.data) > 1000 and built.layers > 0


@HERE
def test_names_of_architectures_are_read_as_people_write_them() -> None:
    assert ENGINE.chosen_architectures(("8.9", "SM86", "sm_120", "89")) == ("sm89", "sm86", "sm120")
    assert set(ENGINE.chosen_architectures(())) <= set(ENGINE.architectures())


@HERE
@pytest.mark.parametrize(
    ("name", "said"), [("sm87", "Orin"), ("sm90", "Hopper"), ("sm110", "Thor"), ("sm98", "sm89")]
)
def test_other_cards_are_refused_with_where_they_belong(name: str, said: str) -> None:
    with pytest.raises(RequestError) as refused:
        ENGINE.chosen_architectures((name,))
    assert said in refused.value.seen + refused.value.fix


def qdq(scale: float, zero_point: np.ndarray) -> bytes:
    """One pair on the input of one convolution."""
    weight = np.ones((4, 3, 1, 1), np.float32)
    constants = {"s": np.float32(scale), "z": zero_point, "w": weight}
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize"),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dequantize"),
            helper.make_node("Conv", ["d", "w"], ["y"], name="convolution"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 8, 8])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@HERE
@pytest.mark.parametrize(
    ("model", "rule"),
    [(qdq(0.0, np.int8(0)), "AVQ-L04"), (qdq(0.1, np.int8(3)), "AVQ-L02")],
    ids=["zero scale", "zero point"],
)
def test_what_the_parser_refuses_is_told_with_its_node_and_lint_knew(model: Any, rule: str) -> None:
    with pytest.raises(ModelError, match=r"cannot read node '(de)?quantize'") as refused:
        ENGINE.compile(model, "sm89")
    assert refused.value.seen and "lint" in refused.value.fix
    assert rule in {finding.id for finding in lint(onnx.load_model_from_string(model), "tensorrt-rtx")}


@HERE
def test_bytes_that_are_no_model_are_refused() -> None:
    with pytest.raises(ModelError, match="cannot read"):
        ENGINE.compile(b"no model", "sm89")


@HERE
def test_int8_with_an_fp16_side_is_what_the_parser_takes() -> None:
    proto = small_net()
    view = view_of(proto)
    peaks = activation_peaks(proto, view, [picture(0)], engine_by_name("onnxruntime"))
    model = lower(proto, to_fp16(view, simple_plan(proto, view), peaks), "s8")
    assert not [f for f in lint(onnx.load_model_from_string(model), "tensorrt-rtx") if f.severity == "error"]
    built = ENGINE.compile(model, "sm89")
    assert len(built.data) > 1000 and not [text for text in built.warnings if "scales to fp32" in text]


@HERE
@NO_GPU
def test_running_is_refused_where_there_is_no_card(tmp_path: Path) -> None:
    ways: tuple[Callable[[], Any], ...] = (
        lambda: ENGINE.open(sample_model(), SessionOptions()),
        lambda: ENGINE.open_engine(b"engine", "f16"),
    )
    for open_it in ways:
        with pytest.raises(MachineError, match="can build here but not run") as refused:
            open_it()
        assert "driver" in refused.value.seen or "GPU" in refused.value.seen


@HERE
@pytest.mark.parametrize(("architecture", "runs"), [("sm89", True), ("sm90", False), ("sm87", False)])
def test_a_card_it_does_not_know_is_named(
    architecture: str, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_rtx, "why_no_card", lambda: "")
    monkeypatch.setattr(tensorrt_rtx, "first_card", lambda: Card("a card", architecture))
    status = ENGINE.status()
    assert status.can_run is runs and status.can_build
    assert runs or (architecture in status.why and "--target tensorrt" in status.why)


COLLECTED_IN_THE_LOG = """
import gc
import tensorrt_rtx
from avq.contract.engine_suite import sample_model
from avq.engines import tensorrt_build, tensorrt_rtx as engine

make = tensorrt_build.make_log

def collecting(trt):
    class Log(type(make(trt))):
        def log(self, severity, message):
            if gc.isenabled():
                gc.collect()
    return Log()

def leave_a_builder():
    cycle = [tensorrt_rtx.Builder(make(tensorrt_rtx))]
    cycle.append(cycle)

gc.set_threshold(0)  # collections at chosen moments only
leave_a_builder()
engine.make_log = collecting
print(len(engine.TensorRtRtxEngine().compile(sample_model(), "sm89").data) > 1000, gc.isenabled())
"""


@HERE
def test_a_builder_that_was_left_to_the_collector_does_not_hang_the_next_one() -> None:
    """As after a refused model, whose error remembers its builder."""
    done = subprocess.run(
        [sys.executable, "-c", COLLECTED_IN_THE_LOG],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout == "True True\n", done.stderr
