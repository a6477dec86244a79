"""``.avqcal`` files: integer counts with what they were counted on; mergeable, resumable, deterministic.

Layout, little endian: magic (8 bytes), length of the body (uint64), SHA-256 of all that follows (32 bytes), then
the body, deflated: length of the header (uint64), header (JSON), and per tensor in header order the arrays of
:meth:`Histogram.to_arrays`. No times, no paths, no floats but the exact extremes.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from avq.atomic_file import atomic_replace, stale_temporaries
from avq.builder.calibrate.histogram import BINS, Histogram
from avq.errors import CalibrationError

MAGIC = b"avqcal\x00\x01"
FORMAT_VERSION = 1
_PREAMBLE = struct.Struct("<8sQ32s")
_LENGTH = struct.Struct("<Q")
_ARRAYS = (("counts", "<i8", (2, BINS)), ("extremes", "<f8", (2,)), ("totals", "<i8", (4,)))
_TENSOR_BYTES = sum(8 * int(np.prod(shape)) for _, _, shape in _ARRAYS)
_LARGEST_BODY = 1 << 30
#: Above this a body must not unpack to more than a hundred times its bytes: counts do not compress so well.
_TRUSTED_BODY = 1 << 27
_LARGEST_RATIO = 100
_LISTED = 5


@dataclass(frozen=True, slots=True)
class Origin:
    """Settings that the counts depend on besides the pictures; files of different origin never merge.

    Attributes:
        graph: digest of the float graph.
        preprocess: the preprocessing spec as canonical JSON.
        runtime: name and version.
        optimisation: the runtime's optimisation level.
        instruction_set: of the processor.
        passes: runs per picture, when the outputs of one did not fit into the memory limit.
    """

    graph: str
    preprocess: str
    runtime: str
    optimisation: str
    instruction_set: str
    passes: int = 1

    @property
    def key(self) -> str:
        """SHA-256 over all fields."""
        return hashlib.sha256(_canonical(self.to_json())).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, slots=True)
class Shard:
    """Parts of one set that an incomplete file covers.

    Attributes:
        of: number of shards the set was cut into.
        have: indices of the shards that are complete in this file.
        set_digest: SHA-256 over the digests of the whole set.
    """

    of: int
    have: tuple[int, ...]
    set_digest: str


@dataclass(frozen=True)
class CalibrationFile:
    """Content of an .avqcal file.

    Attributes:
        origin: what was run, where.
        images: SHA-256 of every counted picture, sorted.
        histograms: by tensor name.
        shard: None when the file covers its whole set.
    """

    origin: Origin
    images: tuple[str, ...]
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    shard: Shard | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the body; files with equal digests are byte-identical."""
        return hashlib.sha256(_body(self)).hexdigest()


def set_digest(images: Iterable[str]) -> str:
    """Return the SHA-256 over picture digests, in any order."""
    return hashlib.sha256("\n".join(sorted(images)).encode()).hexdigest()


def check_writable(path: Path) -> None:
    """Create the folder of ``path`` and check access before a long pass.

    Raises:
        CalibrationError: the file cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        why = "it is a folder" if path.is_dir() else ""
        if not why and not os.access(path.parent, os.W_OK):
            why = f"no permission in {path.parent}"
    except OSError as error:
        why = error.strerror or str(error)
    if why:
        raise CalibrationError(f"{path} cannot be written", seen=why, fix="name a file in a folder of yours")


def write(path: Path, data: CalibrationFile) -> None:
    """Write a file atomically: a reader sees the old content or the new, never a part.

    Raises:
        CalibrationError: the file system refuses.
    """
    body = _body(data)
    packed = zlib.compress(body, 1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_replace(path) as temporary, temporary.open("wb") as file:
            file.write(_PREAMBLE.pack(MAGIC, len(body), hashlib.sha256(packed).digest()))
            file.write(packed)
    except OSError as error:
        raise CalibrationError(
            f"{path} cannot be written",
            seen=error.strerror or str(error),
            fix="check the folder and its space",
        ) from None


def discard(path: Path) -> None:
    """Remove a checkpoint and the temporary files of killed writers."""
    for file in (path, *stale_temporaries(path)):
        file.unlink(missing_ok=True)


def read(path: Path) -> CalibrationFile:
    """Read and verify a file.

    Raises:
        CalibrationError: the file is missing, damaged or of another format.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise CalibrationError(
            f"{path} cannot be read", seen=error.strerror or str(error), fix="check the path"
        ) from None
    if not raw.startswith(MAGIC[:6]):
        raise CalibrationError(
            f"{path} is not an .avqcal file",
            seen=f"begins with {raw[:8]!r}",
            fix="avq calibrate MODEL writes one",
        )
    try:
        return _parsed(_verified_body(raw))
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        struct.error,
        zlib.error,
        MemoryError,
        RecursionError,
    ) as error:
        raise CalibrationError(
            f"{path} is damaged", seen=str(error) or type(error).__name__, fix="calibrate or copy it again"
        ) from None


def merge(files: Sequence[CalibrationFile], names: Sequence[str] = ()) -> CalibrationFile:
    """Merge files into one with the counts of all. The order does not matter.

    Args:
        files: at least one.
        names: their paths, for messages.

    Raises:
        CalibrationError: origins or tensors differ (names the field), a picture was counted twice, or the
            shards are not of one set.
    """
    if not files:
        raise CalibrationError("no files to merge", fix="name at least one .avqcal file")
    labels = list(names) or [f"file {number}" for number in range(1, len(files) + 1)]
    first = files[0]
    for other, label in zip(files[1:], labels[1:], strict=True):
        _check_same_settings(first, labels[0], other, label)
    _check_disjoint(files, labels)
    histograms: dict[str, Histogram] = {}
    for name in sorted(first.histograms):
        histograms[name] = Histogram()
        for file in files:
            histograms[name].merge(file.histograms[name])
    images = tuple(sorted(image for file in files for image in file.images))
    return CalibrationFile(first.origin, images, histograms, _merged_shard(files, labels, images))


def merge_paths(paths: Sequence[Path]) -> CalibrationFile:
    """Merge files on disk, see :func:`merge`."""
    return merge([read(path) for path in paths], [str(path) for path in paths])


def _check_same_settings(a: CalibrationFile, a_name: str, b: CalibrationFile, b_name: str) -> None:
    mine, theirs = a.origin.to_json(), b.origin.to_json()
    unlike = [f"{key}: {mine[key]} / {theirs[key]}" for key in mine if mine[key] != theirs[key]]
    odd = sorted(set(a.histograms) ^ set(b.histograms))
    if odd:
        unlike.append(f"tensors: {len(odd)} in one file only, such as {odd[0]}")
    if unlike:
        raise CalibrationError(
            f"{a_name} and {b_name} were calibrated with different settings",
            seen="; ".join(unlike),
            fix="calibrate all parts with one model, preprocessing, runtime and machine type",
        )


def _check_disjoint(files: Sequence[CalibrationFile], labels: Sequence[str]) -> None:
    owner: dict[str, str] = {}
    for file, label in zip(files, labels, strict=True):
        twice = [image for image in file.images if image in owner]
        if twice:
            more = f" and {len(twice) - _LISTED} more" if len(twice) > _LISTED else ""
            raise CalibrationError(
                f"{owner[twice[0]]} and {label} contain {len(twice)} of the same pictures",
                seen=", ".join(image[:16] for image in twice[:_LISTED]) + more,
                fix="merge each picture once: use --shard i/n to cut one set into parts",
            )
        owner.update(dict.fromkeys(file.images, label))


def _merged_shard(
    files: Sequence[CalibrationFile], labels: Sequence[str], images: Sequence[str]
) -> Shard | None:
    """Return the shards of the union; None when complete, as for a run without shards."""
    parts = [file.shard for file in files]
    known = [part for part in parts if part is not None]
    if not known:
        return None
    first = known[0]
    of, have = first.of, [index for part in known for index in part.have]
    alike = all(part.of == of and part.set_digest == first.set_digest for part in known)
    if not alike or len(known) < len(parts) or len(set(have)) < len(have):
        raise CalibrationError(
            f"{', '.join(labels)} are not shards of one set",
            seen=", ".join(_described(part) for part in parts),
            fix="cut one and the same folder with --shard 0/n ... n-1/n",
        )
    if len(have) < of:
        return Shard(of, tuple(sorted(have)), first.set_digest)
    if set_digest(images) != first.set_digest:
        raise CalibrationError(
            "the shards do not make up their set",
            seen=f"{len(images)} pictures",
            fix="calibrate the shards again",
        )
    return None


def _described(shard: Shard | None) -> str:
    if shard is None:
        return "a whole set"
    return f"{','.join(map(str, shard.have)) or 'nothing complete'}/{shard.of} of {shard.set_digest[:8]}"


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _body(data: CalibrationFile) -> bytes:
    names = sorted(data.histograms)
    shard = data.shard
    header = _canonical(
        {
            "version": FORMAT_VERSION,
            "key": data.origin.key,
            "origin": data.origin.to_json(),
            "images": list(data.images),
            "shard": shard and {"of": shard.of, "have": list(shard.have), "set": shard.set_digest},
            "tensors": names,
        }
    )
    parts = [_LENGTH.pack(len(header)), header]
    for name in names:
        arrays = data.histograms[name].to_arrays()
        parts += [np.ascontiguousarray(arrays[key], dtype).tobytes() for key, dtype, _ in _ARRAYS]
    return b"".join(parts)


def _verified_body(raw: bytes) -> bytes:
    magic, length, digest = _PREAMBLE.unpack_from(raw)
    if magic != MAGIC:
        raise ValueError(f"format {magic[7]}, this avq reads {MAGIC[7]}")
    packed = raw[_PREAMBLE.size :]
    if hashlib.sha256(packed).digest() != digest or length > _LARGEST_BODY:
        raise ValueError(f"{len(packed)} bytes, with another checksum")
    if length > _TRUSTED_BODY and length > _LARGEST_RATIO * len(packed):
        raise ValueError(f"{len(packed)} bytes that would unpack to {length}")
    body = zlib.decompressobj().decompress(packed, length + 1)
    if len(body) != length:
        raise ValueError(f"holds another length than the {length} bytes it names")
    return body


def _parsed(body: bytes) -> CalibrationFile:
    (length,) = _LENGTH.unpack_from(body)
    header = json.loads(body[_LENGTH.size : _LENGTH.size + length])
    origin = Origin(**header["origin"])
    names, at = header["tensors"], _LENGTH.size + length
    if origin.key != header["key"] or header["version"] != FORMAT_VERSION:
        raise ValueError("the key does not fit the header")
    if len(body) != at + _TENSOR_BYTES * len(names):
        raise ValueError(f"{len(body) - at} bytes of counts for {len(names)} tensors")
    histograms = {}
    for name in names:
        histograms[name] = _histogram(body, at)
        at += _TENSOR_BYTES
    part = header["shard"]
    shard = Shard(part["of"], tuple(part["have"]), part["set"]) if part else None
    return CalibrationFile(origin, tuple(header["images"]), histograms, shard)


def _histogram(body: bytes, at: int) -> Histogram:
    arrays: dict[str, Any] = {}
    for key, dtype, shape in _ARRAYS:
        size = int(np.prod(shape))
        arrays[key] = np.frombuffer(body, dtype, size, at).reshape(shape)
        at += 8 * size
    return Histogram.from_arrays(arrays)
