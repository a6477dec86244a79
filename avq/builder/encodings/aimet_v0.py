"""Parse and write AIMET encodings up to 0.6.1: tensor -> list of grids, one per tensor or per channel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from avq.builder.encodings.aimet_entry import Encoding, Entry, Role, UnsupportedEntry
from avq.builder.encodings.json_source import Document, Fields, parse_error
from avq.errors import CalibrationError

SECTIONS: tuple[tuple[str, Role], ...] = (
    ("activation_encodings", "activation"),
    ("param_encodings", "param"),
)


def parse(document: Document) -> tuple[Entry, ...]:
    """Parse both maps.

    Raises:
        CalibrationError: a wrong entry; names file:line.
    """
    return tuple(entry for key, role in SECTIONS for entry in _section(document, key, role))


def _section(document: Document, key: str, role: Role) -> Iterator[Entry]:
    section = document.root.get(key, {})
    if not isinstance(section, dict):
        raise parse_error(
            document.where,
            document.line(section),
            f"'{key}' is not a map",
            type(section).__name__,
            "see AIMET 0.6.1",
        )
    for name, grids in section.items():
        if isinstance(grids, dict):
            raise parse_error(
                document.where,
                document.line(grids),
                f"'{name}' is a torch module with inputs and outputs, not a tensor",
                f"keys {', '.join(map(str, grids))}",
                "use the encodings file that AIMET exported with the ONNX model",
            )
        if not isinstance(grids, list) or not grids:
            raise parse_error(
                document.where,
                document.line(section),
                f"'{name}' has no list of encodings",
                repr(grids)[:60],
                "one entry per tensor or per channel",
            )
        yield _entry([Fields(document, name, grid) for grid in grids], name, role, grids)


def _entry(channels: Sequence[Fields], name: str, role: Role, body: Any) -> Entry:
    first = channels[0]
    if str(first.body.get("dtype", "int")).lower() == "float":
        bits = first.bits("bitwidth")
        return UnsupportedEntry(name, role, "float", f"{bits}-bit floating point", body, first.line)
    kinds = {(f.bits("bitwidth"), f.truth("is_symmetric"), str(f.body.get("dtype", "int"))) for f in channels}
    if len(kinds) > 1:
        raise first.wrong(
            "changes its width or symmetry between channels", str(sorted(kinds)), "one kind each"
        )
    bits, symmetric, dtype = kinds.pop()
    if dtype.lower() != "int":
        raise first.wrong("has a wrong 'dtype'", dtype, "int or float")
    limits = [_limits(f) for f in channels]
    return Encoding(
        name,
        role,
        bits,
        tuple(f.number("scale") for f in channels),
        tuple(f.whole("offset") for f in channels),
        symmetric=symmetric,
        signed=symmetric and any(f.body["offset"] for f in channels),
        layout="tensor" if len(channels) == 1 else "channel",
        limits=tuple(pair for pair in limits if pair) if all(limits) else None,
        line=first.line,
    )


def _limits(fields: Fields) -> tuple[float, float] | None:
    if "min" not in fields.body and "max" not in fields.body:
        return None
    return fields.number("min"), fields.number("max")


def render(entries: Sequence[Entry], version: str) -> dict[str, Any]:
    """Write both maps.

    Raises:
        CalibrationError: version 0.x cannot express an entry.
    """
    sections: dict[str, Any] = {key: {} for key, _ in SECTIONS}
    for entry in entries:
        section = next((key for key, role in SECTIONS if role == entry.role), None)
        if section is None:
            raise CalibrationError(
                f"the role of '{entry.name}' is missing: AIMET 0.x has activations and parameters",
                fix="give every entry its role",
            )
        if entry.name in sections[section]:
            raise CalibrationError(f"'{entry.name}' has two encodings", fix="keep one of the two")
        sections[section][entry.name] = (
            entry.body
            if isinstance(entry, UnsupportedEntry)
            else _grids(entry, with_dtype=_has_dtype(version))
        )
    return sections


def _has_dtype(version: str) -> bool:
    """Whether entries have a dtype: from 0.5 on, and in files without a version."""
    numbers = version.split(".")
    return not (len(numbers) > 1 and numbers[1].isdigit() and int(numbers[1]) < 5)


def _grids(entry: Encoding, *, with_dtype: bool) -> list[dict[str, Any]]:
    if entry.layout == "block":
        raise CalibrationError(
            f"AIMET 0.x cannot express the scales per block of '{entry.name}'",
            fix="write version 1.0.0 or 2.0.0",
        )
    limits = entry.limits or tuple(map(_reach, entry.scale, entry.offset, [entry] * len(entry.scale)))
    dtype = {"dtype": "int"} if with_dtype else {}
    return [
        {
            "bitwidth": entry.bits,
            **dtype,
            "is_symmetric": str(entry.symmetric),
            "max": high,
            "min": low,
            "offset": offset,
            "scale": scale,
        }
        for scale, offset, (low, high) in zip(entry.scale, entry.offset, limits, strict=True)
    ]


def _reach(scale: float, offset: int, entry: Encoding) -> tuple[float, float]:
    """(min, max) of the grid; a strictly symmetric one does not use its last level."""
    levels = (1 << entry.bits) - 1
    strict = entry.symmetric and offset == -(levels // 2)
    return scale * offset, scale * (levels - strict + offset)
