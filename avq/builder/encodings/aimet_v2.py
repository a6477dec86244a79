"""Parse and write AIMET encodings 2.0.0 and 2.1.0: one list, x ~ y_scale * (q - y_zero_point) as in ONNX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from avq.builder.encodings.aimet_entry import Encoding, Entry, UnsupportedEntry
from avq.builder.encodings.json_source import MOST_BITS, Document, Fields, named
from avq.errors import CalibrationError
from avq.types import AnyArray

_INTEGER = re.compile(r"(u?)int(\d{1,2})")
_FLOATS = ("float", "bfloat")


def parse(document: Document) -> tuple[Entry, ...]:
    """Parse the list.

    Raises:
        CalibrationError: a wrong entry; names file:line.
    """
    items = named(document, document.root.get("encodings"), "encodings")
    return tuple(_entry(Fields(document, name, body)) for name, body in items)


def _entry(fields: Fields) -> Entry:
    dtype = fields.get("output_dtype", str, "such as uint8 or int8")
    integer = _INTEGER.fullmatch(dtype)
    if integer is None and dtype.startswith(_FLOATS):
        return UnsupportedEntry(fields.name, "", "float", dtype, fields.body, fields.line)
    if integer is None or not 1 <= int(integer.group(2)) <= MOST_BITS:
        raise fields.wrong("has a wrong 'output_dtype'", dtype, "such as uint8, int8, int4 or int32")
    if "per_block_int_scale" in fields.body or isinstance(fields.body.get("y_scale"), dict):
        return UnsupportedEntry(
            fields.name, "", "exotic", "scales of scales (LPBQ)", fields.body, fields.line
        )
    scale = _array(fields, "y_scale")
    zero_point = _array(fields, "y_zero_point") if "y_zero_point" in fields.body else np.zeros_like(scale)
    if np.any(zero_point != np.rint(zero_point)):
        what = "a grid shifted by half a step"
        return UnsupportedEntry(fields.name, "", "exotic", what, fields.body, fields.line)
    return _grid(
        fields, signed=not integer.group(1), bits=int(integer.group(2)), scale=scale, zero_point=zero_point
    )


def _grid(fields: Fields, *, signed: bool, bits: int, scale: AnyArray, zero_point: AnyArray) -> Encoding:
    if zero_point.shape not in (scale.shape, ()):
        raise fields.wrong(
            "has unequal arrays", f"{scale.shape} and {zero_point.shape}", "one zero point per scale"
        )
    zero_point = np.broadcast_to(zero_point, scale.shape)
    axis = fields.get("axis", int, "a whole number") if "axis" in fields.body else None
    size = fields.get("block_size", int, "a whole number") if "block_size" in fields.body else None
    if scale.size > 1 and axis is None:
        raise fields.wrong(
            "has several scales and no 'axis'", f"shape {scale.shape}", "name the channel axis"
        )
    if scale.size > 1 and scale.ndim > 1 and not size:
        raise fields.wrong(
            "has nested scales and no 'block_size'", f"shape {scale.shape}", "name the block size"
        )
    half = 1 << (bits - 1) if signed else 0
    return Encoding(
        fields.name,
        "",
        bits,
        tuple(np.ravel(scale).tolist()),
        tuple(-int(value) - half for value in np.ravel(zero_point)),
        symmetric=signed and not np.any(zero_point),
        signed=signed,
        layout="block" if size else "tensor" if axis is None else "channel",
        axis=axis,
        block_size=size or None,
        shape=scale.shape,
        line=fields.line,
    )


def _array(fields: Fields, key: str) -> AnyArray:
    value = fields.body.get(key)
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        array = np.asarray(np.nan)
    holds_bool = isinstance(value, bool | str | type(None))
    if holds_bool or array.size == 0 or not np.all(np.isfinite(array)):
        raise fields.wrong(
            f"has a wrong '{key}'", repr(value)[:60], "a finite number, or nested lists of them"
        )
    return array


def render(entries: Sequence[Entry]) -> dict[str, Any]:
    """Write the list.

    Raises:
        CalibrationError: QuantizeLinear cannot express a grid.
    """
    return {"encodings": [e.body if isinstance(e, UnsupportedEntry) else _body(e) for e in entries]}


def _body(entry: Encoding) -> dict[str, Any]:
    half = 1 << (entry.bits - 1)
    strict = entry.symmetric and any(offset == 1 - half for offset in entry.offset)
    if strict and entry.bits > 1:
        raise CalibrationError(
            f"AIMET 2.x cannot express the narrow grid of '{entry.name}'",
            seen=f"offset {1 - half}",
            fix="write version 1.0.0 or 0.6.1",
        )
    if entry.layout != "tensor" and entry.axis is None:
        raise CalibrationError(
            f"the axis of '{entry.name}' is missing: AIMET 2.x needs it",
            fix="match the entry with its graph first",
        )
    shape = entry.shape if entry.shape else () if entry.layout == "tensor" else (len(entry.scale),)
    zero_point = [-offset - (half if entry.signed else 0) for offset in entry.offset]
    return {
        "name": entry.name,
        **({} if entry.axis is None else {"axis": entry.axis}),
        **({} if entry.block_size is None else {"block_size": entry.block_size}),
        "output_dtype": f"{'' if entry.signed else 'u'}int{entry.bits}",
        "y_scale": np.reshape(np.asarray(entry.scale), shape).tolist(),
        **({"y_zero_point": np.reshape(np.asarray(zero_point), shape).tolist()} if any(zero_point) else {}),
    }
