"""Read a side file for a float graph: matching entries become points, all others findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from avq.builder.encodings.aimet import parse_aimet
from avq.builder.encodings.aimet_entry import (
    AimetFile,
    Encoding,
    EncodingMismatchError,
    UnsupportedEntry,
    normalised,
    point,
)
from avq.builder.encodings.match import Importer, shaped_for
from avq.builder.encodings.trt_cache import CacheEntry, TrtCache, is_cache, parse_cache
from avq.errors import CalibrationError
from avq.toolbox import weight_point
from avq.types import AnyArray, Edge, GraphView, ImportedQuantization, QuantPoint

_ACCUMULATOR_BITS = 32
_FAR = 2.0


def aimet_points(file: AimetFile, importer: Importer) -> list[QuantPoint]:
    """Points of the integer grids whose tensors the graph has."""
    points: dict[str, QuantPoint] = {}
    for entry in file.entries:
        tensor = importer.find(entry.name, entry.line)
        if tensor is None:
            continue
        try:
            matched = _point(entry, tensor, importer)
        except EncodingMismatchError as reason:
            importer.mismatch(reason, entry.name, entry.line)
            continue
        if tensor in points:
            importer.note("AVQ-Q51", entry.name, entry.line, "is both activation and parameter")
        elif matched is not None:
            points[tensor] = matched
    return list(points.values())


def _point(entry: Encoding | UnsupportedEntry, tensor: str, importer: Importer) -> QuantPoint | None:
    if isinstance(entry, UnsupportedEntry):
        raise EncodingMismatchError("AVQ-Q54" if entry.kind == "float" else "AVQ-Q55", entry.what)
    if entry.bits == _ACCUMULATOR_BITS:
        raise EncodingMismatchError("AVQ-Q54", "32 bits")
    entry_in_use = normalised(entry)
    if entry_in_use.offset != entry.offset:
        importer.note(
            "AVQ-Q52", entry.name, entry.line, f"{max(entry.offset)} means {entry_in_use.offset[0]}"
        )
    shaped = shaped_for(entry_in_use, tensor, importer.names)
    matched = point(entry_in_use, importer.names.whole(tensor), *shaped)
    if importer.graph.is_constant(tensor) and _exceeds_grid(importer.graph.constants[tensor], matched):
        importer.note("AVQ-Q59", entry.name, entry.line)
    return matched


def _exceeds_grid(weight: AnyArray, point: QuantPoint) -> bool:
    """Whether some channel's largest magnitude is more than twice the end of its grid."""
    if point.block_size is not None:
        return False
    others = tuple(i for i in range(weight.ndim) if i != point.axis) if point.scale.ndim else None
    largest = np.abs(weight).max(axis=others, initial=0.0)
    ends = np.maximum(point.qmax - point.zero_point, point.zero_point - point.qmin)
    return bool(np.any(largest > _FAR * ends * point.scale))


def cache_points(cache: TrtCache, importer: Importer) -> list[QuantPoint]:
    """Points of the weighted operators whose activations all have a scale, and of their weights."""
    scales: dict[str, CacheEntry] = {}
    for entry in {entry.tensor: entry for entry in cache.entries}.values():
        tensor = importer.find(entry.tensor, entry.line)
        if tensor is not None and _usable(entry, importer):
            scales[tensor] = entry
    edges = importer.names.integer_edges(scales)
    points = [_cache_point(scales[edge.tensor], edge) for edge in edges]
    read = {edge.tensor for edge in edges}
    for tensor, entry in scales.items():
        if tensor not in read:
            importer.note("AVQ-Q57", entry.tensor, entry.line)
    return points + _weights(scales, importer)


def _usable(entry: CacheEntry, importer: Importer) -> bool:
    scale = np.float32(entry.scale)
    if np.isfinite(scale) and scale >= np.finfo(np.float32).tiny:
        return True
    importer.note("AVQ-Q53", entry.tensor, entry.line, f"scale {scale:.6g}")
    return False


def _cache_point(entry: CacheEntry, edge: Edge) -> QuantPoint:
    return QuantPoint(edge, np.asarray(entry.scale, np.float32), np.asarray(0, np.int64))


def _weights(scales: Mapping[str, CacheEntry], importer: Importer) -> list[QuantPoint]:
    return [
        weight_point(p.weight, importer.graph.constants[p.weight.tensor], p.weight_axis)
        for p in importer.names.placements
        if p.weight is not None and all(edge.tensor in scales for edge in p.activations)
    ]


CACHE_DIALECT = "trt-cache"
_LARGEST_BYTES = 1 << 30


def read_side_file(path: Path, graph: GraphView) -> ImportedQuantization:
    """Read the quantization in ``path``, on edges of ``graph``.

    TensorRT caches contain neither weights nor placement: weighted operators whose activations all have a scale
    are quantized, with weights scaled per output channel by their largest magnitude, as TensorRT does. AIMET grids
    apply to every reader of their tensor.

    Raises:
        CalibrationError: the file cannot be read; names file:line.
    """
    file = parse_side_file(path)
    importer = Importer(graph, path.name)
    points = cache_points(file, importer) if isinstance(file, TrtCache) else aimet_points(file, importer)
    return ImportedQuantization(dialect(file), producer(file), tuple(points), findings=importer.findings())


def is_side_file(path: Path) -> bool:
    """Whether a file begins like a cache or a JSON object."""
    try:
        with path.open("rb") as file:
            head = file.read(256)
    except OSError:
        return False
    return is_cache(head) or head.lstrip()[:1] == b"{"


def parse_side_file(path: Path) -> TrtCache | AimetFile:
    """Parse a cache or an encodings file; the content decides which.

    Raises:
        CalibrationError: the file cannot be read, or is neither.
    """
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise CalibrationError(
                f"{path} is too large for a side file", seen=f"{path.stat().st_size} bytes"
            )
        data = path.read_bytes()
    except OSError as error:
        seen = error.strerror or str(error)
        raise CalibrationError(f"cannot read {path}", seen=seen, fix="check the path") from None
    if is_cache(data):
        return parse_cache(data, path.name)
    if data.lstrip()[:1] == b"{":
        return parse_aimet(data, path.name)
    raise CalibrationError(
        f"{path} is neither a TensorRT calibration cache nor an AIMET encodings file",
        seen=f"{path.name}:1: it begins with {data[:24]!r}",
        fix="give a cache, which begins with TRT-, or encodings, a JSON object",
    )


def dialect(file: TrtCache | AimetFile) -> str:
    """Name of the format, such as "trt-cache" or "aimet-0.6.1"."""
    if isinstance(file, TrtCache):
        return CACHE_DIALECT
    return f"aimet-{file.version or '0.x'}"


def producer(file: TrtCache | AimetFile) -> str:
    """Producer that the file names; '' without one."""
    if isinstance(file, TrtCache):
        return file.header
    return _plain(file.rest.get("producer"))


def _plain(value: object) -> str:
    if isinstance(value, str):
        return value
    return ", ".join(map(str, value)) if isinstance(value, Sequence) else ""


Row = dict[str, object]


def listing(file: TrtCache | AimetFile) -> list[Row]:
    """Rows for a table, in file order.

    Returns:
        name, grid, scale ((smallest, largest) of several) and line of every entry.
    """
    if isinstance(file, TrtCache):
        return [
            {"name": e.tensor, "grid": "int8 symmetric per tensor", "scale": e.scale, "line": e.line}
            for e in file.entries
        ]
    return [_row(entry) for entry in file.entries]


def _row(entry: Encoding | UnsupportedEntry) -> Row:
    if isinstance(entry, UnsupportedEntry):
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
