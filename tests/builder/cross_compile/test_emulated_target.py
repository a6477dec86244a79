"""FP16 with INT8 is emulated bit for bit by runtimes without operator set 23, too."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import onnx
import pytest

from avq.builder.cross_compile.fp16 import activation_peaks, to_fp16
from avq.builder.emulated_target import EmulatedEngine, to_opset_21
from avq.builder.graph.view import view_of
from avq.builder.lower import lower
from avq.engines import engine_by_name
from avq.engines.onnxruntime import OnnxRuntimeEngine
from avq.engines.tensorrt_rtx import TensorRtRtxEngine
from avq.errors import MachineError
from avq.types import SessionOptions
from tests.builder.lower.lowering_nets import picture, simple_plan, small_net

PLAIN = SessionOptions(optimise=False)
PICTURES = [picture(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def sided() -> bytes:
    """INT8 with an FP16 side, as TensorRT's parser is given it."""
    proto = small_net()
    view = view_of(proto)
    peaks = activation_peaks(proto, view, PICTURES, engine_by_name("onnxruntime"))
    return lower(proto, to_fp16(view, simple_plan(proto, view), peaks), "s8")


def opset(model: bytes) -> int:
    return int(onnx.load_model_from_string(model).opset_import[0].version)


class Older(OnnxRuntimeEngine):
    """onnxruntime as 1.23 is: the newest that Python 3.10 has."""

    def open(self, model: Any, options: Any) -> Any:
        if opset(model) > 22:
            raise MachineError("onnxruntime has no kernel for a node of the model", seen="QuantizeLinear(23)")
        return super().open(model, options)


def answers(engine: Any, model: bytes) -> list[dict[str, np.ndarray]]:
    session = engine.open(model, PLAIN)
    try:
        return [{k: np.array(v) for k, v in session.infer(one).items()} for one in PICTURES]
    finally:
        session.close()


def test_the_answers_are_the_same_bits(sided: bytes) -> None:
    older = to_opset_21(sided)
    assert older is not None
    assert (opset(sided), opset(older)) == (23, 21)
    kinds = [node.op_type for node in onnx.load_model_from_string(sided).graph.node]
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(kinds)
    newer = engine_by_name("onnxruntime")
    try:
        expected = answers(newer, sided)
    except MachineError:
        pytest.skip("this onnxruntime has no operator set 23: nothing to compare with")
    for ours, theirs in zip(expected, answers(newer, older), strict=True):
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_a_reference_without_that_operator_set_rehearses_it_all_the_same(sided: bytes) -> None:
    stand_in = EmulatedEngine(TensorRtRtxEngine(), Older())
    assert all(np.isfinite(value).all() for one in answers(stand_in, sided) for value in one.values())


def test_what_is_in_older_operators_already_is_refused_as_before() -> None:
    class Without(OnnxRuntimeEngine):
        def open(self, model: Any, options: Any) -> NoReturn:
            raise MachineError("onnxruntime has no kernel for a node of the model", seen="Fancy(1)")

    with pytest.raises(MachineError, match="no kernel"):
        EmulatedEngine(TensorRtRtxEngine(), Without()).open(small_net().SerializeToString(), PLAIN)
