"""Files whose quantization no plan can hold, refused before anything is read."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from avq.builder.lift.fakequant import is_fake_quantize
from avq.builder.lift.linear import DEQUANTIZE, QUANTIZE
from avq.builder.lift.qonnx import is_qonnx
from avq.builder.lift.reading import Reading
from avq.builder.lift.table import refusal

_DYNAMIC = frozenset(
    {"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulIntegerToFloat"}
)
_INTEGER = frozenset({"ConvInteger", "MatMulInteger", "QGemm", "QAttention", "MatMulNBits"})
_FLOATS = frozenset(
    {"TRT_FP8QuantizeLinear", "TRT_FP8DequantizeLinear", "TRT_MXFP8DynamicQuantize", "TRT_FP4DynamicQuantize"}
    | {"BFPQuantizeDequantize", "MXQuantizeDequantize", "FloatQuant"}
)


def is_quantizer(node: onnx.NodeProto) -> bool:
    """Whether the node rounds a float tensor to a grid or back."""
    return node.op_type in QUANTIZE | DEQUANTIZE or is_qonnx(node) or is_fake_quantize(node)


def is_foreign(node: onnx.NodeProto) -> bool:
    """Whether the node shows that its file is quantized."""
    op = node.op_type
    return is_quantizer(node) or op in _DYNAMIC | _INTEGER | _FLOATS or op.startswith("QLinear")


def refuse_unreadable(reading: Reading) -> None:
    """ModelError with the pitfall's code for run-time scales, integer operators, FP8, and control flow."""
    checks: tuple[tuple[str, Callable[[str], bool]], ...] = (
        ("AVQ-Q33", _DYNAMIC.__contains__),
        ("AVQ-Q34", lambda op: op in _INTEGER or op.startswith("QLinear")),
        ("AVQ-Q35", _FLOATS.__contains__),
    )
    nodes = list(reading.all_nodes())
    for code, matches in checks:
        places = [f"{n.op_type} '{n.name}'" for n, _ in nodes if matches(n.op_type)]
        if places:
            raise refusal(code, places)
    inside = [f"{n.op_type} '{n.name}'" for n, within in nodes if within and is_quantizer(n)]
    if inside:
        raise refusal("AVQ-Q39", inside)
