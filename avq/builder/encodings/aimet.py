"""Parse and write AIMET encodings files of every version."""

from __future__ import annotations

import json
from collections import Counter

from avq.builder.encodings import aimet_v0, aimet_v1, aimet_v2
from avq.builder.encodings.aimet_entry import AimetFile, Entry
from avq.builder.encodings.json_source import Document, parse_error
from avq.errors import CalibrationError, nearest

WRITTEN_VERSIONS = ("0.6.1", "1.0.0", "2.0.0")
_OWN_KEYS = ("version", "activation_encodings", "param_encodings", "encodings")


def parse_aimet(data: bytes, where: str = "encodings") -> AimetFile:
    """Parse an encodings file of version 0.x, 1.x or 2.x.

    Args:
        data: content of the file.
        where: its name, for errors.

    Returns:
        Version and entries.

    Raises:
        CalibrationError: no JSON, no AIMET encodings, or a wrong entry; names ``where``:line.
    """
    document = Document(data, where)
    version = document.root.get("version", "")
    if not isinstance(version, str):
        raise parse_error(where, 1, "'version' is not a text", repr(version), 'such as "1.0.0"')
    entries = _parse_as(_family(document, version), document)
    names = Counter((entry.name, entry.role) for entry in entries)
    for entry in entries:
        if names[entry.name, entry.role] > 1:
            raise parse_error(
                where, entry.line, f"'{entry.name}' has two encodings", "", "keep one of the two"
            )
    rest = {key: value for key, value in document.root.items() if key not in _OWN_KEYS}
    return AimetFile(version, entries, rest)


def write_aimet(file: AimetFile) -> bytes:
    """Write a file, sorted and indented as AIMET does; ``parse_aimet`` gives ``file`` back.

    Raises:
        CalibrationError: the version cannot express an entry.
    """
    if file.version.startswith("2."):
        body = aimet_v2.render(file.entries)
    elif file.version.startswith("1."):
        body = aimet_v1.render(file.entries)
    else:
        body = aimet_v0.render(file.entries, file.version)
    version = {"version": file.version} if file.version else {}
    return json.dumps({**file.rest, **body, **version}, indent=4, sort_keys=True).encode()


def _family(document: Document, version: str) -> str:
    """First number of the version; guessed from the sections in a file without one."""
    family = version.partition(".")[0]
    if family in ("0", "1", "2"):
        return family
    if version:
        raise parse_error(
            document.where,
            1,
            f"AIMET encodings version {version} is not supported",
            version,
            nearest(version, WRITTEN_VERSIONS),
        )
    sections = [document.root[key] for key in _OWN_KEYS[1:3] if key in document.root]
    if not sections:
        raise CalibrationError(
            f"{document.where} is JSON, but not an encodings file",
            seen=f"keys {', '.join(document.root) or 'none'}",
            fix="give a file with 'activation_encodings' and 'param_encodings', or 'encodings'",
        )
    return "1" if isinstance(sections[0], list) else "0"


def _parse_as(family: str, document: Document) -> tuple[Entry, ...]:
    parsers = {"0": aimet_v0.parse, "1": aimet_v1.parse, "2": aimet_v2.parse}
    return parsers[family](document)
