"""FakeQuantize(x, in_low, in_high, out_low, out_high; levels), as NNCF and OpenVINO write it.

y = round((x - low) / (high - low) * (levels - 1)) / (levels - 1) * (high - low) + low, clipped to the ends. An
integer grid when levels are 2^bits or one less, zero lies on it, and input and output range agree.
"""

from __future__ import annotations

import numpy as np
import onnx

from avq.builder.graph.edit import int_attribute
from avq.builder.lift.findings import refusal
from avq.builder.lift.grid import Grid, make_grid, width_of
from avq.builder.lift.qonnx import channel_axis
from avq.builder.lift.reading import FoundQuantizer, QuantizedFile
from avq.types import F64, AnyArray

# A zero point is read off the ends by division; ends are float32.
_OFF_GRID = 1e-3
# Ends that differ by rounding are the same.
_SAME_END = 1e-6


def is_fake_quantize(node: onnx.NodeProto) -> bool:
    return node.op_type == "FakeQuantize" and node.domain not in ("", "ai.onnx")


def read_fake_quantize(reading: QuantizedFile) -> list[FoundQuantizer]:
    """Every FakeQuantize."""
    return [_found(reading, n) for n in reading.nodes if is_fake_quantize(n)]


def _found(reading: QuantizedFile, node: onnx.NodeProto) -> FoundQuantizer:
    ends = []
    for name in node.input[1:5]:
        value = reading.array(name)
        if value is None:
            raise refusal("AVQ-Q42", [f"{node.name} ({name})"])
        if name in reading.computed:
            reading.fault("AVQ-Q16", node.input[0])
        ends.append(np.asarray(value, np.float64))
    return FoundQuantizer(node.input[0], node.output[0], _grid(reading, node, ends), (node,))


def _grid(reading: QuantizedFile, node: onnx.NodeProto, ends: list[F64]) -> Grid | None:
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
