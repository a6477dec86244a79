"""Read quantizers that are one node each.

QONNX, as Brevitas writes it: Quant and BipolarQuant in their own domain; Trunc and FloatQuant refused. Quant clips
x / scale + zero_point to the grid, rounds, and goes back. Its unsigned narrow grid drops the highest level, ours the
lowest: the same grid, moved by one.

FakeQuantize(x, in_low, in_high, out_low, out_high; levels), as NNCF and OpenVINO write it:
y = round((x - low) / (high - low) * (levels - 1)) / (levels - 1) * (high - low) + low, clipped to the ends. An
integer grid when levels are 2^bits or one less, zero lies on it, and input and output range agree.
"""

from __future__ import annotations

import numpy as np
import onnx

from avq.builder.graph.edit import int_attribute, text_attribute
from avq.builder.lift.findings import refusal
from avq.builder.lift.grid import Grid, make_grid, width_of
from avq.builder.lift.reading import FoundQuantizer, QuantizedFile
from avq.types import F64, AnyArray
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

# A zero point is read off the ends by division; ends are float32.
_OFF_GRID = 1e-3
# Ends that differ by rounding are the same.
_SAME_END = 1e-6


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


def is_fake_quantize(node: onnx.NodeProto) -> bool:
    return node.op_type == "FakeQuantize" and node.domain not in ("", "ai.onnx")


def read_fake_quantize(reading: QuantizedFile) -> list[FoundQuantizer]:
    """Every FakeQuantize."""
    return [_fake_quantize(reading, n) for n in reading.nodes if is_fake_quantize(n)]


def _fake_quantize(reading: QuantizedFile, node: onnx.NodeProto) -> FoundQuantizer:
    ends = []
    for name in node.input[1:5]:
        value = reading.array(name)
        if value is None:
            raise refusal("AVQ-Q42", [f"{node.name} ({name})"])
        if name in reading.computed:
            reading.fault("AVQ-Q16", node.input[0])
        ends.append(np.asarray(value, np.float64))
    return FoundQuantizer(node.input[0], node.output[0], _fake_quantize_grid(reading, node, ends), (node,))


def _fake_quantize_grid(reading: QuantizedFile, node: onnx.NodeProto, ends: list[F64]) -> Grid | None:
    place, levels = node.input[0], int_attribute(node, "levels", 256)
    low, high, out_low, out_high = ends
    reach = np.maximum(np.abs(low), np.abs(high))
    if not (np.all(np.isfinite(reach)) and np.all(high > low)):
        return _without(reading, "AVQ-Q11", place)
    if np.any(np.abs(low - out_low) > _SAME_END * reach) or np.any(
        np.abs(high - out_high) > _SAME_END * reach
    ):
        return _without(reading, "AVQ-Q30", place)
    bits = max(levels - 1, 1).bit_length()
    if levels not in ((1 << bits), (1 << bits) - 1) or not 2 <= bits <= 16:
        return _without(reading, "AVQ-Q29", f"{place} ({levels} levels)")
    scale = (high - low) / (levels - 1)
    steps = -low / scale  # the level of real zero, counted from the lowest
    if np.any(np.abs(steps - np.rint(steps)) > _OFF_GRID):
        return _without(reading, "AVQ-Q15", f"{place} (zero at level {np.ravel(steps)[0]:.3f})")
    return _on_grid(scale, np.rint(steps).astype(np.int64), levels, bits)


def _on_grid(scale: F64, zero_level: AnyArray, levels: int, bits: int) -> Grid:
    """Signed where zero sits in the middle, else unsigned."""
    half, narrow = 1 << (bits - 1), levels == (1 << bits) - 1
    axis, flat = channel_axis(scale)
    middle = half - 1 if narrow else half
    signed = bool(np.all(zero_level == middle))
    lowest = (-half if signed else 0) + narrow
    assert width_of(lowest, lowest + levels - 1) == (bits, signed, narrow)
    zero_point = np.broadcast_to(zero_level + lowest, scale.shape).reshape(flat.shape)
    return make_grid(flat, zero_point, axis=axis, bits=bits, signed=signed, narrow=narrow)


def _without(reading: QuantizedFile, code: str, place: str) -> Grid | None:
    reading.fault(code, place)
    return None


def channel_axis(scale: AnyArray) -> tuple[int | None, AnyArray]:
    """The one axis along which broadcast parameters vary, and them as a vector; None when there is one."""
    if scale.size == 1:
        return None, scale.reshape(())
    axes = [i for i, size in enumerate(scale.shape) if size > 1]
    return (axes[0] if len(axes) == 1 else None), scale.reshape(-1)
