"""Read QuantizeLinear and DequantizeLinear, as onnxruntime, NNCF, Model Optimizer, Vitis AI and Brevitas write them.

Activations have Q, an optional Clip with the bit width, then DQ. Weights are floats in front of such a pair, or
integers in front of a DQ without Q, with an optional Clip between.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from avq.builder.graph.edit import int_attribute
from avq.builder.lift.findings import refusal
from avq.builder.lift.grid import Grid, dequantize, fits, make_grid, width_of
from avq.builder.lift.reading import FoundQuantizer, QuantizedFile, numpy_kind
from avq.types import AnyArray

QUANTIZE = frozenset(
    {"QuantizeLinear", "ExtendedQuantizeLinear", "VitisQuantizeLinear", "TRT_INT4QuantizeLinear"}
)
DEQUANTIZE = frozenset(
    {"DequantizeLinear", "ExtendedDequantizeLinear", "VitisDequantizeLinear", "TRT_INT4DequantizeLinear"}
)
_BITS = {"INT8": 8, "UINT8": 8, "INT16": 16, "UINT16": 16, "INT4": 4, "UINT4": 4, "INT2": 2, "UINT2": 2}
_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)
_HALF = np.finfo(np.float16)
#: Integer tensors pass through these unchanged in value.
_MOVERS = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "Slice", "Gather"})


def read_linear(reading: QuantizedFile) -> list[FoundQuantizer]:
    """Every pair and every lone DQ over constants.

    Raises ModelError for graphs whose integers go anywhere else.
    """
    _move_dequantizers_up(reading)
    found = [_pair_or_constant(reading, node) for node in reading.nodes if node.op_type in DEQUANTIZE]
    _refuse_loose_integers(reading, {n.name for one in found for n in one.nodes})
    return found


def _refuse_loose_integers(reading: QuantizedFile, taken: set[str]) -> None:
    """Everything that reads integers must be taken out with them."""
    loose = []
    for node in reading.nodes:
        writes_integers = node.op_type in QUANTIZE or (node.name in taken and node.op_type not in DEQUANTIZE)
        if not writes_integers:
            continue
        readers = [r.op_type for r in reading.readers.get(node.output[0], []) if r.name not in taken]
        if readers or node.output[0] in reading.outputs:
            by = readers[0] if readers else "the graph's output"
            loose.append(f"{node.name} ({node.input[0]}), read by {by}")
    if loose:
        raise refusal("AVQ-Q08", loose)


def _pair_or_constant(reading: QuantizedFile, node: onnx.NodeProto) -> FoundQuantizer:
    stored, low_high, inner = _behind_clip(reading, node.input[0])
    integers = reading.constants.get(stored)
    if integers is not None:
        return _constant(reading, node, integers, low_high, inner)
    writer = reading.writer.get(stored)
    if writer is None or writer.op_type not in QUANTIZE:
        by = "a graph input" if writer is None else f"{writer.op_type} '{writer.name}'"
        raise refusal("AVQ-Q09", [f"{node.name} reads '{node.input[0]}', {by}"])
    return _pair(reading, writer, node, low_high, inner)


def _pair(
    reading: QuantizedFile,
    quantize: onnx.NodeProto,
    dequantize_node: onnx.NodeProto,
    low_high: tuple[int, int] | None,
    inner: tuple[onnx.NodeProto, ...],
) -> FoundQuantizer:
    source, result = quantize.input[0], dequantize_node.output[0]
    whole = _grid(reading, quantize, source)
    grid = _narrowed(reading, whole, low_high, source)
    clip = whole if grid is None else grid
    back = _grid(reading, dequantize_node, source, stored_as=quantize)
    if grid is not None and back is not None and _differs(grid, back):
        reading.fault("AVQ-Q38", source)
        grid = None
    return FoundQuantizer(source, result, grid, (quantize, *inner, dequantize_node), clip)


def _differs(grid: Grid, back: Grid) -> bool:
    same = (grid.axis, grid.block_size, grid.signed) == (back.axis, back.block_size, back.signed)
    return not (
        same
        and grid.scale.shape == back.scale.shape
        and np.array_equal(grid.scale, back.scale)
        and np.array_equal(grid.zero_point, back.zero_point)
    )


def _constant(
    reading: QuantizedFile,
    node: onnx.NodeProto,
    integers: onnx.TensorProto,
    low_high: tuple[int, int] | None,
    inner: tuple[onnx.NodeProto, ...],
) -> FoundQuantizer:
    """Stored integers become the float constant they stand for; 32-bit ones are biases."""
    kind, values = numpy_kind(integers), np.asarray(onnx.numpy_helper.to_array(integers))
    if kind.startswith("FLOAT"):
        raise refusal("AVQ-Q35" if "8" in kind or "4" in kind else "AVQ-Q09", [f"{node.name} ({kind})"])
    raw = _grid(reading, node, integers.name, kind=kind, shape=values.shape)
    if raw is None:
        real = values.astype(np.float32)
    else:
        if low_high is not None:
            values = np.clip(values.astype(np.int64), *low_high)
        real = dequantize(values.astype(np.int64), raw)
    source = reading.add_constant(_float_name(integers.name), real)
    grid = raw if kind == "INT32" else _narrowed(reading, raw, low_high, node.output[0])
    return FoundQuantizer(source, node.output[0], grid, (*inner, node))


def _float_name(stored: str) -> str:
    for ending in ("_quantized", "/quantized", ".quantized"):
        if stored.endswith(ending):
            return stored.removesuffix(ending)
    return f"{stored}/float"


def _behind_clip(
    reading: QuantizedFile, name: str
) -> tuple[str, tuple[int, int] | None, tuple[onnx.NodeProto, ...]]:
    """The integers in front of a Clip (which constant folding may have taken), with the Clip's ends."""
    clip = reading.integer_clips.get(name)
    if clip is None:
        return name, None, ()
    low, high = (reading.array(end) for end in clip[1:])
    if low is None or high is None or low.dtype.kind not in "iu":
        return name, None, ()
    node = reading.writer.get(name)
    stored = clip[0] if node is not None else name
    return stored, (int(low.reshape(-1)[0]), int(high.reshape(-1)[0])), (node,) if node is not None else ()


def _narrowed(
    reading: QuantizedFile, grid: Grid | None, low_high: tuple[int, int] | None, place: str
) -> Grid | None:
    """The grid that remains between a Clip's ends."""
    if grid is None or low_high is None:
        return grid
    low, high = max(low_high[0], grid.qmin), min(low_high[1], grid.qmax)
    width = width_of(low, high)
    if width is None:
        reading.fault("AVQ-Q29", f"{place} (integers {low} to {high})")
        return None
    bits, signed, narrow = width
    return replace(grid, bits=bits, signed=signed, narrow=narrow)


def _grid(
    reading: QuantizedFile,
    node: onnx.NodeProto,
    place: str,
    *,
    kind: str = "",
    shape: tuple[int, ...] | None = None,
    stored_as: onnx.NodeProto | None = None,
) -> Grid | None:
    """Grid of a node; None after a fault was collected."""
    scale = reading.array(node.input[1])
    if scale is None:
        raise refusal("AVQ-Q42", [f"{node.name} ({node.input[1]})"])
    zero_point, kind = _zero_point(reading, node, kind or (_output_kind(reading, stored_as or node)))
    if any(name in reading.computed for name in node.input[1:]):
        reading.fault("AVQ-Q16", place)
    _note_age(reading, node, scale, kind, place)
    if kind.startswith("FLOAT"):
        raise refusal("AVQ-Q35", [f"{place} ({kind})"])
    if not (np.all(np.isfinite(scale)) and np.all(np.asarray(scale, np.float64) > 0)):
        reading.fault("AVQ-Q11", place)
        return None
    if not _whole(zero_point, kind):
        reading.fault("AVQ-Q15", place)
        return None
    bits = 32 if kind == "INT32" else _BITS.get(kind, 8)
    block = int_attribute(node, "block_size", 0) or None
    grid = make_grid(
        scale,
        zero_point,
        axis=int_attribute(node, "axis", 1),
        block_size=block,
        bits=bits,
        signed=not kind.startswith("U"),
    )
    if not fits(grid, shape if shape is not None else _shape(reading, place)):
        reading.fault("AVQ-Q07", f"{place} ({grid.scale.shape} along axis {grid.axis})")
        return None
    return grid


def _zero_point(reading: QuantizedFile, node: onnx.NodeProto, kind: str) -> tuple[AnyArray, str]:
    """The zero point and the name of the integer type; 0 where the file has none."""
    if len(node.input) < 3 or not node.input[2]:
        return np.zeros((), np.int64), kind
    tensor = reading.constants.get(node.input[2])
    if tensor is None:
        raise refusal("AVQ-Q42", [f"{node.name} ({node.input[2]})"])
    stored = numpy_kind(tensor)
    value = np.asarray(onnx.numpy_helper.to_array(tensor))
    if stored in ("FLOAT", "FLOAT16", "DOUBLE", "INT64"):  # a Cast that was left out: the values decide
        return value, kind
    return (value if stored.startswith("FLOAT") else value.astype(np.int64)), stored


def _output_kind(reading: QuantizedFile, node: onnx.NodeProto) -> str:
    """Integer type of a quantizer: that of its zero point, its output_dtype, else UINT8."""
    if node.op_type.startswith("TRT_INT4"):
        return "INT4"
    if len(node.input) > 2 and node.input[2] in reading.constants:
        stored = numpy_kind(reading.constants[node.input[2]])
        if stored not in ("FLOAT", "FLOAT16", "DOUBLE", "INT64"):
            return stored
    declared = int_attribute(node, "output_dtype", 0)
    if declared:
        return str(onnx.TensorProto.DataType.Name(declared))
    if node.op_type in QUANTIZE and len(node.input) < 3:
        reading.fault("AVQ-Q14", node.input[0])
    return "UINT8"


def _whole(zero_point: AnyArray, kind: str) -> bool:
    values = np.asarray(zero_point, np.float64)
    if not np.array_equal(values, np.rint(values)):
        return False
    if kind == "INT32":
        return True
    bits, unsigned = _BITS.get(kind, 8), kind.startswith("U")
    low = 0 if unsigned else -(1 << (bits - 1))
    return bool(np.all(values >= low) and np.all(values <= low + (1 << bits) - 1))


def _note_age(reading: QuantizedFile, node: onnx.NodeProto, scale: AnyArray, kind: str, place: str) -> None:
    """Collect types that the file's operator set does not have; other domains have them."""
    standard = node.domain in ("", "ai.onnx")
    if standard and scale.size > 1 and reading.opset < 13:
        reading.fault("AVQ-Q17", place)
    if standard and scale.dtype == np.float16 and reading.opset < 19:
        reading.fault("AVQ-Q18", place)
    if standard and kind in ("INT4", "UINT4", "INT16", "UINT16") and reading.opset < 21:
        reading.fault("AVQ-Q19", place)
    wide = np.abs(scale.astype(np.float64))
    if np.any((wide > 0) & (wide < _SMALLEST_NORMAL)):
        reading.fault("AVQ-Q12", place)
    elif np.any(wide > float(_HALF.max)) or np.any((wide > 0) & (wide < float(_HALF.smallest_subnormal))):
        reading.fault("AVQ-Q13", place)


def _shape(reading: QuantizedFile, name: str) -> tuple[int, ...] | None:
    tensor = reading.constants.get(name)
    return tuple(tensor.dims) if tensor is not None else None


def _move_dequantizers_up(reading: QuantizedFile) -> None:
    """Q, mover, DQ becomes Q, DQ, mover: moving integers and moving their values is the same."""
    for _ in range(len(reading.nodes)):
        moved = next((n for n in reading.nodes if _movable(reading, n)), None)
        if moved is None:
            return
        _swap(reading, moved)


def _movable(reading: QuantizedFile, node: onnx.NodeProto) -> bool:
    if node.op_type not in _MOVERS or len(node.output) != 1:
        return False
    before = reading.writer.get(node.input[0])
    after = reading.readers.get(node.output[0], [])
    if before is None or before.op_type not in QUANTIZE or not after or node.output[0] in reading.outputs:
        return False
    scale = reading.array(before.input[1])
    return scale is not None and scale.size == 1 and all(n.op_type in DEQUANTIZE for n in after)


def _swap(reading: QuantizedFile, node: onnx.NodeProto) -> None:
    graph = reading.proto.graph
    for after in reading.readers[node.output[0]]:
        result, values = after.output[0], f"{after.output[0]}/before_{node.op_type.lower()}"
        after.input[0], after.output[0] = node.input[0], values
        mover = graph.node.add()
        mover.CopyFrom(node)
        mover.name = f"{node.name}/{result}"
        mover.input[0], mover.output[0] = values, result
    graph.node.remove(node)
    reading.refresh()
