"""The entries of a side file, as rows for people and machines."""

from __future__ import annotations

from avq.builder.sidefiles.encoding import AimetFile, Encoding, Untaken
from avq.builder.sidefiles.trt_cache import TrtCache

Row = dict[str, object]


def listing(file: TrtCache | AimetFile) -> list[Row]:
    """One row per entry, in file order: name, what its grid is, its scales' ends, its line."""
    if isinstance(file, TrtCache):
        return [
            {"name": e.tensor, "grid": "int8 symmetric per tensor", "scale": e.scale, "line": e.line}
            for e in file.entries
        ]
    return [_row(entry) for entry in file.entries]


def _row(entry: Encoding | Untaken) -> Row:
    if isinstance(entry, Untaken):
        return {"name": entry.name, "grid": entry.what, "scale": None, "line": entry.line}
    kind = "symmetric" if entry.symmetric else "asymmetric"
    largest = max(entry.scale)
    scale: object = largest if len(entry.scale) == 1 else [min(entry.scale), largest]
    return {
        "name": entry.name,
        "grid": f"int{entry.bits} {kind} per {entry.layout}",
        "scale": scale,
        "line": entry.line,
    }
