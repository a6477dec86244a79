"""The little of OMG CDR (DDS-XTypes 1.3, plain CDR) that ROS 2 image messages need."""

from __future__ import annotations

import struct
from dataclasses import dataclass

_ALIGNMENT = {"B": 1, "i": 4, "I": 4}


class CdrReader:
    """Reads primitives in order; alignment counts from after the 4-byte encapsulation header.

    Raises ValueError on a header that is not plain CDR, struct.error or ValueError where bytes are missing.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) < 4 or data[0] != 0 or data[1] not in (0, 1):
            raise ValueError(f"not plain CDR: header {data[:4]!r}")
        self._data = memoryview(data)[4:]
        self._order = "<" if data[1] == 1 else ">"
        self._at = 0

    def number(self, kind: str) -> int:
        """One ``struct`` code out of B, i, I."""
        size = _ALIGNMENT[kind]
        self._at += -self._at % size
        (value,) = struct.unpack_from(self._order + kind, self._data, self._at)
        self._at += size
        return int(value)

    def text(self) -> str:
        return bytes(self.blob()).rstrip(b"\0").decode("utf-8")

    def blob(self) -> memoryview:
        """A sequence of octets (or the bytes of a string), its length first."""
        length = self.number("I")
        piece = self._data[self._at : self._at + length]
        if len(piece) != length:
            raise ValueError(f"cut off: {len(piece)} of {length} bytes")
        self._at += length
        return piece


class CdrWriter:
    """Little-endian plain CDR, primitive by primitive, as ``CdrReader`` reads it."""

    def __init__(self) -> None:
        self._data = bytearray()

    def number(self, kind: str, value: int) -> None:
        """One ``struct`` code out of B, i, I."""
        self._data += bytes(-len(self._data) % _ALIGNMENT[kind])
        self._data += struct.pack("<" + kind, value)

    def text(self, text: str) -> None:
        self.blob(text.encode() + b"\0")

    def blob(self, data: bytes) -> None:
        self.number("I", len(data))
        self._data += data

    def header(self, stamp: tuple[int, int], frame_id: str) -> None:
        """A std_msgs/msg/Header; ``stamp`` in whole seconds and nanoseconds."""
        self.number("i", stamp[0])
        self.number("I", stamp[1])
        self.text(frame_id)

    def done(self) -> bytes:
        return b"\0\1\0\0" + bytes(self._data)


@dataclass(frozen=True, slots=True)
class RawImage:
    """Uncompressed pixels as sensor_msgs/Image and foxglove.RawImage carry them."""

    width_px: int
    height_px: int
    encoding: str
    step_bytes: int
    data: memoryview
    big_endian: bool = False


def _header(cdr: CdrReader) -> None:
    cdr.number("i")
    cdr.number("I")
    cdr.text()


def ros_compressed_image(data: bytes) -> memoryview:
    """The encoded picture of a sensor_msgs/msg/CompressedImage."""
    cdr = CdrReader(data)
    _header(cdr)
    cdr.text()
    return cdr.blob()


def ros_image(data: bytes) -> RawImage:
    """A sensor_msgs/msg/Image."""
    cdr = CdrReader(data)
    _header(cdr)
    height_px, width_px = cdr.number("I"), cdr.number("I")
    encoding = cdr.text()
    big_endian, step_bytes = bool(cdr.number("B")), cdr.number("I")
    return RawImage(width_px, height_px, encoding, step_bytes, cdr.blob(), big_endian)
