"""A side file over its float graph: every name that fits becomes a point, every other one a finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from avq.builder.encodings.aimet import parse_aimet
from avq.builder.encodings.aimet_entry import AimetFile, Encoding, UnfitError, Untaken, point, settled
from avq.builder.encodings.match import Taking, spread_over
from avq.builder.encodings.trt_cache import CacheEntry, TrtCache, looks_like_cache, parse_cache
from avq.errors import CalibrationError
from avq.toolbox import weight_point
from avq.types import AnyArray, Edge, GraphView, ImportedQuantization, QuantPoint

# AIMET encodings over a float graph.

_ACCUMULATOR_BITS = 32
_FAR = 2.0


def aimet_points(file: AimetFile, taking: Taking) -> list[QuantPoint]:
    """A point for every integer grid whose tensor the graph has."""
    points: dict[str, QuantPoint] = {}
    for entry in file.entries:
        tensor = taking.find(entry.name, entry.line)
        if tensor is None:
            continue
        try:
            made = _point(entry, tensor, taking)
        except UnfitError as reason:
            taking.unfit(reason, entry.name, entry.line)
            continue
        if tensor in points:
            taking.note("AVQ-Q51", entry.name, entry.line, "is named as activation and as parameter")
        elif made is not None:
            points[tensor] = made
    return list(points.values())


def _point(entry: Encoding | Untaken, tensor: str, taking: Taking) -> QuantPoint | None:
    if isinstance(entry, Untaken):
        raise UnfitError("AVQ-Q54" if entry.kind == "float" else "AVQ-Q55", entry.what)
    if entry.bits == _ACCUMULATOR_BITS:
        raise UnfitError("AVQ-Q54", "32 bits")
    true = settled(entry)
    if true.offset != entry.offset:
        taking.note("AVQ-Q52", entry.name, entry.line, f"{max(entry.offset)} means {true.offset[0]}")
    spread = spread_over(true, tensor, taking.names)
    made = point(true, taking.names.whole(tensor), *spread)
    if taking.graph.is_constant(tensor) and _reaches_too_far(taking.graph.constants[tensor], made):
        taking.note("AVQ-Q59", entry.name, entry.line)
    return made


def _reaches_too_far(weight: AnyArray, point: QuantPoint) -> bool:
    """Some channel's largest magnitude is more than twice what its grid holds."""
    if point.block_size is not None:
        return False
    others = tuple(i for i in range(weight.ndim) if i != point.axis) if point.scale.ndim else None
    largest = np.abs(weight).max(axis=others, initial=0.0)
    ends = np.maximum(point.qmax - point.zero_point, point.zero_point - point.qmin)
    return bool(np.any(largest > _FAR * ends * point.scale))


# A TensorRT calibration cache over a float graph.


def cache_points(cache: TrtCache, taking: Taking) -> list[QuantPoint]:
    """Points in front of every weighted operator whose inputs are all named, and on its weights."""
    scales: dict[str, CacheEntry] = {}
    for entry in {entry.tensor: entry for entry in cache.entries}.values():
        tensor = taking.find(entry.tensor, entry.line)
        if tensor is not None and _usable(entry, taking):
            scales[tensor] = entry
    edges = taking.names.integer_edges(scales)
    points = [_cache_point(scales[edge.tensor], edge) for edge in edges]
    read = {edge.tensor for edge in edges}
    for tensor, entry in scales.items():
        if tensor not in read:
            taking.note("AVQ-Q57", entry.tensor, entry.line)
    return points + _weights(scales, taking)


def _usable(entry: CacheEntry, taking: Taking) -> bool:
    scale = np.float32(entry.scale)
    if np.isfinite(scale) and scale >= np.finfo(np.float32).tiny:
        return True
    taking.note("AVQ-Q53", entry.tensor, entry.line, f"scale {scale:.6g}")
    return False


def _cache_point(entry: CacheEntry, edge: Edge) -> QuantPoint:
    return QuantPoint(edge, np.asarray(entry.scale, np.float32), np.asarray(0, np.int64))


def _weights(scales: Mapping[str, CacheEntry], taking: Taking) -> list[QuantPoint]:
    return [
        weight_point(p.weight, taking.graph.constants[p.weight.tensor], p.weight_axis)
        for p in taking.names.placements
        if p.weight is not None and all(edge.tensor in scales for edge in p.activations)
    ]


CACHE_DIALECT = "trt-cache"
_LARGEST_BYTES = 1 << 30


def read_side_file(path: Path, graph: GraphView) -> ImportedQuantization:
    """The quantization in ``path``, on edges of ``graph``.

    TensorRT caches hold no weights and no placement: weighted operators whose inputs are all named get them,
    and weights are scaled per output channel by their largest magnitude, as TensorRT does.
    AIMET grids hold for every reader of their tensor.

    Raises CalibrationError with file:line when the file cannot be read as what it is.
    """
    file = parse_side_file(path)
    taking = Taking(graph, path.name)
    points = cache_points(file, taking) if isinstance(file, TrtCache) else aimet_points(file, taking)
    return ImportedQuantization(dialect(file), producer(file), tuple(points), findings=taking.findings())


def is_side_file(path: Path) -> bool:
    """Whether a file begins as a cache or as a JSON object."""
    try:
        with path.open("rb") as file:
            head = file.read(256)
    except OSError:
        return False
    return looks_like_cache(head) or head.lstrip()[:1] == b"{"


def parse_side_file(path: Path) -> TrtCache | AimetFile:
    """The entries of a cache or an encodings file, told apart by their content.

    Raises CalibrationError when it cannot be read, or is neither.
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
    if looks_like_cache(data):
        return parse_cache(data, path.name)
    if data.lstrip()[:1] == b"{":
        return parse_aimet(data, path.name)
    raise CalibrationError(
        f"{path} is neither a TensorRT calibration cache nor an AIMET encodings file",
        seen=f"{path.name}:1: it begins with {data[:24]!r}",
        fix="a cache begins with TRT-, encodings are a JSON object",
    )


def dialect(file: TrtCache | AimetFile) -> str:
    """Such as "trt-cache" or "aimet-0.6.1"."""
    if isinstance(file, TrtCache):
        return CACHE_DIALECT
    return f"aimet-{file.version or '0.x'}"


def producer(file: TrtCache | AimetFile) -> str:
    """The file's own word for what wrote it."""
    if isinstance(file, TrtCache):
        return file.header
    return _plain(file.rest.get("producer"))


def _plain(value: object) -> str:
    if isinstance(value, str):
        return value
    return ", ".join(map(str, value)) if isinstance(value, Sequence) else ""


# The entries of a side file, as rows for people and machines.

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
