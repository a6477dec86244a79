"""QONNX, as Brevitas writes it: Quant and BipolarQuant in a domain of their own; Trunc and FloatQuant refused.

Quant clips x / scale + zero_point to the grid, rounds, and goes back. Its unsigned narrow grid drops the highest
level, ours the lowest: the same grid, moved by one.
"""

from __future__ import annotations

import numpy as np
import onnx

from avq.builder.graph.edit import int_attribute, text_attribute
from avq.builder.lift.findings import refusal
from avq.builder.lift.grid import Grid, make_grid
from avq.builder.lift.reading import FoundQuantizer, QuantizedFile
from avq.types import AnyArray
from avq.types.plan import Rounding

DOMAINS = frozenset({"onnx.brevitas", "qonnx.custom_op.general", "finn.custom_op.general"})
_REFUSED = {"Trunc": "AVQ-Q37", "TruncAvgPool2d": "AVQ-Q37", "FloatQuant": "AVQ-Q35"}
_ROUNDING: dict[str, Rounding] = {
    "ROUND": "half_even",
    "HALF_EVEN": "half_even",
    "HALF_UP": "half_up",
    "FLOOR": "floor",
    "CEIL": "ceil",
    "UP": "ceil",
    "DOWN": "floor",
    "ROUND_TO_ZERO": "toward_zero",
}


def is_qonnx(node: onnx.NodeProto) -> bool:
    return node.domain in DOMAINS and node.op_type in {"Quant", "IntQuant", "BipolarQuant", *_REFUSED}


def read_qonnx(reading: QuantizedFile) -> list[FoundQuantizer]:
    """Every Quant and BipolarQuant. Raises ModelError for Trunc and FloatQuant."""
    nodes = [n for n in reading.nodes if is_qonnx(n)]
    for op, code in _REFUSED.items():
        places = [f"{n.name} ({n.input[0]})" for n in nodes if n.op_type == op]
        if places:
            raise refusal(code, places)
    return [_bipolar(reading, n) if n.op_type == "BipolarQuant" else _quant(reading, n) for n in nodes]


def _quant(reading: QuantizedFile, node: onnx.NodeProto) -> FoundQuantizer:
    scale, zero_point, bits = (_constant(reading, node, name) for name in node.input[1:4])
    return FoundQuantizer(
        node.input[0], node.output[0], _grid(reading, node, scale, zero_point, bits), (node,)
    )


def _constant(reading: QuantizedFile, node: onnx.NodeProto, name: str) -> AnyArray:
    value = reading.array(name)
    if value is None:
        raise refusal("AVQ-Q42", [f"{node.name} ({name})"])
    if name in reading.computed:
        reading.fault("AVQ-Q16", node.input[0])
    return value


def _grid(
    reading: QuantizedFile, node: onnx.NodeProto, scale: AnyArray, zero_point: AnyArray, bits: AnyArray
) -> Grid | None:
    place, width = node.input[0], np.unique(bits)
    is_weight = place in reading.constants
    if not (np.all(np.isfinite(scale)) and np.all(scale > 0)):
        return _without(reading, "AVQ-Q11", place)
    if not np.array_equal(zero_point, np.rint(zero_point)):
        return _without(reading, "AVQ-Q15", place)
    if len(width) != 1 or width[0] != int(width[0]) or not 2 <= width[0] <= 16:
        code = "AVQ-Q36" if len(width) == 1 and width[0] == 1 and not is_weight else "AVQ-Q29"
        return _without(reading, code, f"{place} ({', '.join(f'{w:g}' for w in width)} bits)")
    rounding = _ROUNDING.get(text_attribute(node, "rounding_mode", "ROUND").upper())
    if rounding is None or (rounding != "half_even" and not is_weight):
        return _without(reading, "AVQ-Q31", f"{place} ({text_attribute(node, 'rounding_mode', 'ROUND')})")
    signed, narrow = bool(int_attribute(node, "signed", 1)), bool(int_attribute(node, "narrow", 0))
    axis, flat = channel_axis(scale)
    moved = 1 if narrow and not signed else 0
    return make_grid(
        flat,
        np.asarray(zero_point).reshape(-1)[:1].reshape(()) + moved
        if zero_point.size == 1
        else np.ravel(zero_point) + moved,
        axis=axis,
        bits=int(width[0]),
        signed=signed,
        narrow=narrow,
        rounding=rounding,
    )


def _bipolar(reading: QuantizedFile, node: onnx.NodeProto) -> FoundQuantizer:
    """+-scale by sign. On a constant: its own values on a grid of -1, 0, 1."""
    scale, values = reading.array(node.input[1]), reading.array(node.input[0])
    if scale is None:
        raise refusal("AVQ-Q42", [f"{node.name} ({node.input[1]})"])
    if values is None:
        return FoundQuantizer(
            node.input[0], node.output[0], _without(reading, "AVQ-Q36", node.input[0]), (node,)
        )
    signs = np.where(values >= 0, np.float32(1), np.float32(-1))
    source = reading.add_constant(f"{node.input[0]}/sign", np.asarray(signs * scale, np.float32))
    axis, flat = channel_axis(scale)
    grid = make_grid(flat, np.zeros((), np.int64), axis=axis, bits=2, signed=True, narrow=True)
    return FoundQuantizer(source, node.output[0], grid, (node,))


def _without(reading: QuantizedFile, code: str, place: str) -> Grid | None:
    reading.fault(code, place)
    return None


def channel_axis(scale: AnyArray) -> tuple[int | None, AnyArray]:
    """The one axis along which broadcast parameters vary, and them as a vector; None when there is one."""
    if scale.size == 1:
        return None, scale.reshape(())
    axes = [i for i, size in enumerate(scale.shape) if size > 1]
    return (axes[0] if len(axes) == 1 else None), scale.reshape(-1)
