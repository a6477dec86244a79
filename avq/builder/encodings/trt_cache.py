"""TensorRT calibration caches: one header line, then ``tensor: hex`` lines.

The hex digits are the bits of a big-endian float32, the scale of a signed 8-bit grid around zero: its largest
magnitude over 127. Names may hold colons, spaces and parentheses, so the last colon ends them.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

from avq.builder.encodings.json_source import broken, decoded
from avq.errors import CalibrationError

_HEADER = re.compile(r"TRT-\d+-\w+")
_HEX = re.compile(r"[0-9a-fA-F]{1,8}")
_KNOWN_HEADER = "TRT-8501-EntropyCalibration2"


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One tensor's scale.

    Attributes:
        tensor: its name in TensorRT's network; usually the ONNX name.
        bits: the float32's 32 bits, kept as they are so that every file can be written again exactly.
        line: where it stands, counted from 1; 0 when it was never read from a file.
    """

    tensor: str
    bits: int
    line: int = field(default=0, compare=False)

    @classmethod
    def of(cls, tensor: str, scale: float) -> CacheEntry:
        """The entry of a scale, rounded to float32."""
        return cls(tensor, struct.unpack(">I", struct.pack(">f", scale))[0])

    @property
    def scale(self) -> float:
        """The float32 as a Python float, exactly."""
        return float(struct.unpack(">f", struct.pack(">I", self.bits))[0])


@dataclass(frozen=True, slots=True)
class TrtCache:
    """A calibration cache.

    Attributes:
        header: such as "TRT-8501-EntropyCalibration2": version and calibrator that wrote it.
        entries: in file order.
    """

    header: str
    entries: tuple[CacheEntry, ...]


def looks_like_cache(data: bytes) -> bool:
    """Whether the first line is a cache's header."""
    return data.lstrip()[:4] == b"TRT-"


def parse_cache(data: bytes, where: str = "cache") -> TrtCache:
    """The entries of a cache.

    Raises CalibrationError with ``where``:line for a wrong header, a line that is not ``name: hex``, or one
    tensor with two scales.
    """
    lines = decoded(data, where).split("\n")
    header = lines[0].strip()
    if not _HEADER.fullmatch(header):
        raise broken(where, 1, "a calibration cache begins with a header", header[:60], _KNOWN_HEADER)
    entries = [_entry(line.rstrip("\r"), n, where) for n, line in enumerate(lines[1:], 2) if line.strip()]
    _refuse_two_scales(entries, where)
    return TrtCache(header, tuple(entries))


def write_cache(cache: TrtCache) -> bytes:
    """The file, as TensorRT writes it; ``parse_cache`` gives ``cache`` back.

    Raises CalibrationError for a header or a name that the format cannot hold.
    """
    if not _HEADER.fullmatch(cache.header):
        raise CalibrationError(
            f"'{cache.header}' is no header of a calibration cache", fix=f"such as {_KNOWN_HEADER}"
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
        raise broken(where, number, "this line names no tensor", line[:80], "write 'tensor: 3c008912'")
    if not _HEX.fullmatch(digits.strip()):
        raise broken(
            where,
            number,
            f"the scale of '{tensor}' is not a float32 in hexadecimal",
            digits.strip()[:40] or "nothing",
            "one to eight hexadecimal digits, big endian; was the file cut or converted?",
        )
    return CacheEntry(tensor, int(digits, 16), number)


def _refuse_two_scales(entries: list[CacheEntry], where: str) -> None:
    first: dict[str, CacheEntry] = {}
    for entry in entries:
        before = first.setdefault(entry.tensor, entry)
        if before.bits != entry.bits:
            raise broken(
                where,
                entry.line,
                f"'{entry.tensor}' has two scales",
                f"{entry.scale:.6g} here, {before.scale:.6g} on line {before.line}",
                "keep one of the two lines",
            )
