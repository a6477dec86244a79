"""A side file over its float graph: every name that fits becomes a point, every other one a finding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from avq.builder.sidefiles.aimet import parse_aimet
from avq.builder.sidefiles.encoding import AimetFile
from avq.builder.sidefiles.read_aimet import aimet_points
from avq.builder.sidefiles.read_cache import cache_points
from avq.builder.sidefiles.taking import Taking
from avq.builder.sidefiles.trt_cache import TrtCache, looks_like_cache, parse_cache
from avq.errors import CalibrationError
from avq.types import Foreign, GraphView

CACHE_DIALECT = "trt-cache"
_LARGEST_BYTES = 1 << 30


def read_side_file(path: Path, graph: GraphView) -> Foreign:
    """The quantization in ``path``, on edges of ``graph``.

    TensorRT caches hold no weights and no placement: weighted operators whose inputs are all named get them,
    and weights are scaled per output channel by their largest magnitude, as TensorRT does.
    AIMET grids hold for every reader of their tensor.

    Raises CalibrationError with file:line when the file cannot be read as what it is.
    """
    file = parse_side_file(path)
    taking = Taking(graph, path.name)
    points = cache_points(file, taking) if isinstance(file, TrtCache) else aimet_points(file, taking)
    return Foreign(dialect(file), producer(file), tuple(points), findings=taking.findings())


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
