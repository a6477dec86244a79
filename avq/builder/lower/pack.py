"""Pack weights of 1 to 7 bits into bytes, and write the operators that unpack them when a file is loaded.

Integers of 1 to 7 bits are cut into planes of 1, 2 or 4 bits, which divide a byte: six bits are a plane of four
and one of two. A plane is unpacked by Gather, from a table with one row of values per byte. Runtimes compute what
depends on constants only once, at load; this form was measured to fold in onnxruntime and OpenVINO alike, the one
with BitShift and BitwiseAnd in onnxruntime only, and it needs no newer operator set.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from avq.builder.lower.model import Model
from avq.types import U8, AnyArray

_PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}
WIDEST = max(_PLANES)


@dataclass(frozen=True)
class Plane:
    """Packed bits of every value, at one position.

    Attributes:
        width: bits per value: 1, 2 or 4.
        shift: position of the lowest of them in the value.
        data: (ceil(count * width / 8),) uint8; earlier values in lower bits.
    """

    width: int
    shift: int
    data: U8


def pack(levels: AnyArray, bits: int) -> tuple[Plane, ...]:
    """Pack integers into planes, low bits first.

    Args:
        levels: integers in 0..2**bits - 1, any shape, taken in C order.
        bits: 1 to 7.
    """
    flat = np.ravel(levels).astype(np.uint8)
    planes, shift = [], 0
    for width in _PLANES[bits]:
        per_byte = 8 // width
        part = (flat >> shift) & ((1 << width) - 1)
        rows = np.pad(part, (0, -len(part) % per_byte)).reshape(-1, per_byte)
        data: U8 = np.bitwise_or.reduce(rows << _positions(width), axis=1).astype(np.uint8)
        planes.append(Plane(width, shift, data))
        shift += width
    return tuple(planes)


def _positions(width: int) -> U8:
    return np.arange(0, 8, width, dtype=np.uint8)


def write_unpacking(
    model: Model, tensor: str, integers: AnyArray, bits: int, *, signed: bool, to: int = TensorProto.FLOAT
) -> tuple[list[onnx.NodeProto], str]:
    """Add ``integers`` of 1 to 7 bits to ``model``, packed.

    Args:
        model: gets the initialisers.
        tensor: the constant they replace; new names begin with it.
        integers: of the grid: -2**(bits-1).. when ``signed``, 0.. else; -1 and +1 for one bit.
        to: ONNX element type of the result.

    Returns:
        The nodes that unpack them, and the name of the tensor with the integers that these write.
    """
    low, step = (-1, 2) if bits == 1 else (-(1 << (bits - 1)) if signed else 0, 1)
    writer = _Unpacking(model, tensor, integers.shape)
    planes = pack((integers - low) // step, bits)
    parts = [writer.plane(plane, step=step, low=low if plane.shift == 0 else 0) for plane in planes]
    kind = TensorProto.INT8
    if len(parts) > 1:  # runtimes add floats, not bytes
        parts, kind = [writer.node("Cast", part, to=TensorProto.FLOAT) for part in parts], TensorProto.FLOAT
    total = parts[0]
    for part in parts[1:]:
        total = writer.node("Add", total, part)
    return writer.nodes, total if kind == to else writer.node("Cast", total, to=to)


class _Unpacking:
    """Nodes and initialisers of one constant; tables and shapes are shared over the model."""

    def __init__(self, model: Model, tensor: str, shape: tuple[int, ...]) -> None:
        self._model, self._tensor, self._shape = model, tensor, shape
        self.nodes: list[onnx.NodeProto] = []

    def plane(self, plane: Plane, *, step: int, low: int) -> str:
        """Write the plane's part of every value, an int8 tensor of the constant's shape."""
        count = prod(self._shape)
        data = self.node("Cast", self.constant("packed", plane.data), to=TensorProto.INT32)
        values = self.node("Gather", self._table(plane, step, low), data)
        if count * plane.width % 8:
            flat = self.node("Reshape", values, self._shared([-1]))
            values = self.node("Slice", flat, self._shared([0]), self._shared([count]))
        return self.node("Reshape", values, self._shared(list(self._shape)))

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = self._model.names.fresh(f"{self._tensor}/{op.lower()}")
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, part: str, values: AnyArray) -> str:
        name = self._model.names.fresh(f"{self._tensor}/{part}")
        return self._model.add_initializer(numpy_helper.from_array(np.ascontiguousarray(values), name))

    def _shared(self, numbers: list[int]) -> str:
        return self._once(f"unpack/{'_'.join(map(str, numbers))}", np.array(numbers, np.int64))

    def _table(self, plane: Plane, step: int, low: int) -> str:
        """Write the (256, values per byte) int8 table: the bits of a byte as parts of their values."""
        bits = (np.arange(256)[:, None] >> _positions(plane.width)) & ((1 << plane.width) - 1)
        name = f"unpack/{plane.width}_bits_at_{plane.shift}_{'' if step == 1 else 'two_level_'}from_{low}"
        return self._once(name, ((bits << plane.shift) * step + low).astype(np.int8))

    def _once(self, name: str, values: AnyArray) -> str:
        known = self._model.shared.get(name)
        if known is None:
            fresh = self._model.names.fresh(name)
            known = self._model.add_initializer(numpy_helper.from_array(np.ascontiguousarray(values), fresh))
            self._model.shared[name] = known
        return known
