"""Parse and write TensorRT calibration caches: one header line, then ``tensor: hex`` lines.

The hex digits are the bits of a big-endian float32, the scale of a signed 8-bit grid around zero: its largest
magnitude over 127. Names may contain colons, spaces and parentheses, so the last colon ends them.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

from avq.builder.encodings.json_source import decode_text, parse_error
from avq.errors import CalibrationError

_HEADER = re.compile(r"TRT-\d+-\w+")
_HEX = re.compile(r"[0-9a-fA-F]{1,8}")
_KNOWN_HEADER = "TRT-8501-EntropyCalibration2"


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One tensor's scale.

    Attributes:
        tensor: its name in TensorRT's network; usually the ONNX name.
        bits: the 32 bits of the float32, so that every file can be written again exactly.
        line: of its file, from 1; 0 for an entry without a file.
    """

    tensor: str
    bits: int
    line: int = field(default=0, compare=False)

    @classmethod
    def of(cls, tensor: str, scale: float) -> CacheEntry:
        """Entry of a scale, rounded to float32."""
        return cls(tensor, struct.unpack(">I", struct.pack(">f", scale))[0])

    @property
    def scale(self) -> float:
        """Scale as a Python float, exact."""
        return float(struct.unpack(">f", struct.pack(">I", self.bits))[0])


@dataclass(frozen=True, slots=True)
class TrtCache:
    """A calibration cache.

    Attributes:
        header: version and calibrator, such as "TRT-8501-EntropyCalibration2".
        entries: in file order.
    """

    header: str
    entries: tuple[CacheEntry, ...]


def is_cache(data: bytes) -> bool:
    """Whether the data begin with a cache's header."""
    return data.lstrip()[:4] == b"TRT-"


def parse_cache(data: bytes, where: str = "cache") -> TrtCache:
    """Parse a cache.

    Raises:
        CalibrationError: a wrong header, a line that is not ``name: hex``, or a tensor with two scales; names
            ``where``:line.
    """
    lines = decode_text(data, where).split("\n")
    header = lines[0].strip()
    if not _HEADER.fullmatch(header):
        raise parse_error(
            where,
            1,
            "the header of the calibration cache is missing",
            header[:60],
            f"begin with {_KNOWN_HEADER}",
        )
    entries = [_entry(line.rstrip("\r"), n, where) for n, line in enumerate(lines[1:], 2) if line.strip()]
    _refuse_two_scales(entries, where)
    return TrtCache(header, tuple(entries))


def write_cache(cache: TrtCache) -> bytes:
    """Write the file as TensorRT does; ``parse_cache`` gives ``cache`` back.

    Raises:
        CalibrationError: the format cannot express the header or a name.
    """
    if not _HEADER.fullmatch(cache.header):
        raise CalibrationError(
            f"'{cache.header}' is not a header of a calibration cache", fix=f"use {_KNOWN_HEADER}"
        )
    for entry in cache.entries:
        if not entry.tensor.strip() or {"\n", "\r"} & set(entry.tensor):
            raise CalibrationError(
                f"a calibration cache cannot name the tensor {entry.tensor!r}",
                fix="rename the tensor: one line, not empty",
            )
    lines = [cache.header, *(f"{entry.tensor}: {entry.bits:08x}" for entry in cache.entries)]
    return ("\n".join(lines) + "\n").encode()


def _entry(line: str, number: int, where: str) -> CacheEntry:
    tensor, colon, digits = line.rpartition(":")
    if not colon or not tensor.strip():
        raise parse_error(where, number, "the line has no tensor name", line[:80], "write 'tensor: 3c008912'")
    if not _HEX.fullmatch(digits.strip()):
        raise parse_error(
            where,
            number,
            f"the scale of '{tensor}' is not a float32 in hexadecimal",
            digits.strip()[:40] or "nothing",
            "write one to eight hexadecimal digits, big endian; the file may be truncated",
        )
    return CacheEntry(tensor, int(digits, 16), number)


def _refuse_two_scales(entries: list[CacheEntry], where: str) -> None:
    first: dict[str, CacheEntry] = {}
    for entry in entries:
        before = first.setdefault(entry.tensor, entry)
        if before.bits != entry.bits:
            raise parse_error(
                where,
                entry.line,
                f"'{entry.tensor}' has two scales",
                f"{entry.scale:.6g} here, {before.scale:.6g} on line {before.line}",
                "keep one of the two lines",
            )
