"""Parse and write AIMET encodings 1.0.0: lists of entries with flat arrays; the operator implies the axis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from avq.builder.encodings.aimet_entry import Encoding, Entry, Layout, Role, UnsupportedEntry
from avq.builder.encodings.aimet_v0 import SECTIONS
from avq.builder.encodings.json_source import Document, Fields, named
from avq.errors import CalibrationError

_LAYOUTS: dict[str, Layout] = {"PER_TENSOR": "tensor", "PER_CHANNEL": "channel", "PER_BLOCK": "block"}
_ENC_TYPES = {layout: name for name, layout in _LAYOUTS.items()}


def parse(document: Document) -> tuple[Entry, ...]:
    """Parse both lists.

    Raises:
        CalibrationError: a wrong entry; names file:line.
    """
    return tuple(entry for key, role in SECTIONS for entry in _section(document, key, role))


def _section(document: Document, key: str, role: Role) -> Iterator[Entry]:
    for name, body in named(document, document.root.get(key, []), key):
        yield _entry(Fields(document, name, body), role)


def _entry(fields: Fields, role: Role) -> Entry:
    bits = fields.bits("bw")
    dtype = str(fields.body.get("dtype", "INT")).upper()
    if dtype in ("FLOAT", "FP"):
        return UnsupportedEntry(
            fields.name, role, "float", f"{bits}-bit floating point", fields.body, fields.line
        )
    kind = fields.get("enc_type", str, f"one of {', '.join([*_LAYOUTS, 'LPBQ'])}")
    if dtype != "INT":
        raise fields.wrong("has a wrong 'dtype'", dtype, "INT or FLOAT")
    if kind == "LPBQ" or "zero_point_shift" in fields.body:
        what = "scales of scales (LPBQ)" if kind == "LPBQ" else "a grid shifted by half a step"
        return UnsupportedEntry(fields.name, role, "exotic", what, fields.body, fields.line)
    if kind not in _LAYOUTS:
        raise fields.wrong("has a wrong 'enc_type'", kind, f"one of {', '.join([*_LAYOUTS, 'LPBQ'])}")
    return _grid(fields, role, bits, _LAYOUTS[kind])


def _grid(fields: Fields, role: Role, bits: int, layout: Layout) -> Encoding:
    scale, offset = fields.numbers("scale"), fields.wholes("offset")
    if len(scale) != len(offset):
        raise fields.wrong("has unequal arrays", f"{len(scale)} scales, {len(offset)} offsets", "one each")
    if layout == "tensor" and len(scale) != 1:
        raise fields.wrong("is per tensor with several scales", str(len(scale)), "PER_CHANNEL, or one scale")
    symmetric = fields.truth("is_sym")
    size = None
    if layout == "block":
        size = fields.get("block_size", int, "the number of elements per scale")
        if size < 1:
            raise fields.wrong("has a wrong 'block_size'", str(size), "a positive number")
    return Encoding(
        fields.name,
        role,
        bits,
        scale,
        offset,
        symmetric=symmetric,
        signed=symmetric and any(offset),
        layout=layout,
        block_size=size,
        line=fields.line,
    )


def render(entries: Sequence[Entry]) -> dict[str, Any]:
    """Write both lists.

    Raises:
        CalibrationError: an entry has no role.
    """
    sections: dict[str, Any] = {key: [] for key, _ in SECTIONS}
    for entry in entries:
        section = next((key for key, role in SECTIONS if role == entry.role), None)
        if section is None:
            raise CalibrationError(
                f"the role of '{entry.name}' is missing: AIMET 1.0.0 has activations and parameters",
                fix="give every entry its role",
            )
        sections[section].append(entry.body if isinstance(entry, UnsupportedEntry) else _body(entry))
    return sections


def _body(entry: Encoding) -> dict[str, Any]:
    block = {} if entry.block_size is None else {"block_size": entry.block_size}
    return {
        **block,
        "bw": entry.bits,
        "dtype": "INT",
        "enc_type": _ENC_TYPES[entry.layout],
        "is_sym": entry.symmetric,
        "name": entry.name,
        "offset": list(entry.offset),
        "scale": list(entry.scale),
    }
