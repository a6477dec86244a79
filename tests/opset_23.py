"""FP16 beside INT8 needs operator set 23; onnxruntime 1.23, the newest for Python 3.10, has no kernels for it."""

from __future__ import annotations

from functools import cache

import pytest
from onnx import TensorProto, helper

from avq.engines import engine_by_name
from avq.errors import MachineError
from avq.types import SessionOptions


@cache
def why_not() -> str:
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"])],
        "half",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [4])],
        [helper.make_tensor_value_info("y", TensorProto.INT8, [4])],
        [
            helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1]),
            helper.make_tensor("zero", TensorProto.INT8, [], [0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    try:
        engine_by_name("onnxruntime").open(model.SerializeToString(), SessionOptions(optimise=False)).close()
    except MachineError:
        return "this onnxruntime has no operator set 23: pip install 'onnxruntime>=1.24', on Python 3.11 or newer"
    return ""


def require_opset_23() -> None:
    """Skips, with the reason, where onnxruntime itself has to run the bytes that TensorRT's parser gets."""
    if why_not():
        pytest.skip(why_not())
