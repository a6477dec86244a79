"""Read and write the parts of CDR and protobuf that image messages use.

Written by hand because the base image has neither rosbags nor protobuf: logs of both kinds replay without them.
Full ROS 2 messages (sinks.zenoh, logs.ros) use rosbags, an optional dependency.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

# Plain CDR (OMG DDS-XTypes 1.3), as ROS 2 image messages use it.

_ALIGNMENT = {"B": 1, "i": 4, "I": 4}


class CdrReader:
    """Read primitives in order; alignment counts from the end of the 4-byte encapsulation header.

    Raises:
        ValueError: the header is not plain CDR, or bytes are missing.
        struct.error: bytes are missing.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) < 4 or data[0] != 0 or data[1] not in (0, 1):
            raise ValueError(f"not plain CDR: header {data[:4]!r}")
        self._data = memoryview(data)[4:]
        self._order = "<" if data[1] == 1 else ">"
        self._at = 0

    def number(self, kind: str) -> int:
        """Read one number; ``kind`` is a ``struct`` code of B, i, I."""
        size = _ALIGNMENT[kind]
        self._at += -self._at % size
        (value,) = struct.unpack_from(self._order + kind, self._data, self._at)
        self._at += size
        return int(value)

    def text(self) -> str:
        return bytes(self.blob()).rstrip(b"\0").decode("utf-8")

    def blob(self) -> memoryview:
        """Read a sequence of octets (or the bytes of a string), which its length precedes."""
        length = self.number("I")
        piece = self._data[self._at : self._at + length]
        if len(piece) != length:
            raise ValueError(f"truncated: {len(piece)} of {length} bytes")
        self._at += length
        return piece


class CdrWriter:
    """Write little-endian plain CDR, primitive by primitive, as ``CdrReader`` reads it."""

    def __init__(self) -> None:
        self._data = bytearray()

    def number(self, kind: str, value: int) -> None:
        """Append one number; ``kind`` is a ``struct`` code of B, i, I."""
        self._data += bytes(-len(self._data) % _ALIGNMENT[kind])
        self._data += struct.pack("<" + kind, value)

    def text(self, text: str) -> None:
        self.blob(text.encode() + b"\0")

    def blob(self, data: bytes) -> None:
        self.number("I", len(data))
        self._data += data

    def header(self, stamp: tuple[int, int], frame_id: str) -> None:
        """Append a std_msgs/msg/Header; ``stamp`` is (seconds, nanoseconds)."""
        self.number("i", stamp[0])
        self.number("I", stamp[1])
        self.text(frame_id)

    def done(self) -> bytes:
        return b"\0\1\0\0" + bytes(self._data)


@dataclass(frozen=True, slots=True)
class RawImage:
    """Uncompressed pixels of a sensor_msgs/Image or foxglove.RawImage."""

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
    """Return the encoded picture of a sensor_msgs/msg/CompressedImage."""
    cdr = CdrReader(data)
    _header(cdr)
    cdr.text()
    return cdr.blob()


def ros_image(data: bytes) -> RawImage:
    """Parse a sensor_msgs/msg/Image."""
    cdr = CdrReader(data)
    _header(cdr)
    height_px, width_px = cdr.number("I"), cdr.number("I")
    encoding = cdr.text()
    big_endian, step_bytes = bool(cdr.number("B")), cdr.number("I")
    return RawImage(width_px, height_px, encoding, step_bytes, cdr.blob(), big_endian)


# Protobuf 3 wire format, as Foxglove image messages use it.

_FIXED = {1: ("<Q", 8), 5: ("<I", 4)}


def fields(data: bytes) -> Mapping[int, int | memoryview]:
    """Return field number -> last value: an integer, or the bytes of a length-delimited field. Raises ValueError."""
    return {number: value for number, value, _ in _walk(data)}


def replace_fields(data: bytes, changed: Mapping[int, bytes], drop: Collection[int] = ()) -> bytes:
    """Return the message without the fields ``drop`` and with the length-delimited fields ``changed``."""
    kept = [bytes(span) for number, _, span in _walk(data) if number not in changed and number not in drop]
    new = [_number(number << 3 | 2) + _number(len(value)) + value for number, value in changed.items()]
    return b"".join((*kept, *new))


def varint_field(number: int, value: int) -> bytes:
    """Encode one field of an integer >= 0."""
    return _number(number << 3) + _number(value)


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _walk(data: bytes) -> Iterator[tuple[int, int | memoryview, memoryview]]:
    """Yield (field number, value, bytes of the whole field), in order. Raises ValueError."""
    view, at = memoryview(data), 0
    while at < len(view):
        start = at
        value: int | memoryview
        key, at = _varint(view, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(view, at)
        elif kind == 2:
            length, at = _varint(view, at)
            value = view[at : at + length]
            at += length
        elif kind in _FIXED:
            code, size = _FIXED[kind]
            (value,) = struct.unpack_from(code, view, at)
            at += size
        else:
            raise ValueError(f"field {number} has wire type {kind}, which protobuf 3 does not define")
        yield number, value, view[start:at]
    if at != len(view):
        raise ValueError(f"truncated: {len(view)} of {at} bytes")


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70 and at < len(view):
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("truncated inside a number")


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where bytes are expected")
    return value


def foxglove_compressed_image(data: bytes) -> memoryview:
    """Return the encoded picture of a foxglove.CompressedImage."""
    return _bytes(fields(data).get(2, memoryview(b"")))


def foxglove_raw_image(data: bytes) -> RawImage:
    """Parse a foxglove.RawImage."""
    values = fields(data)
    width, height, step = (values.get(key, 0) for key in (2, 3, 5))
    if not (isinstance(width, int) and isinstance(height, int) and isinstance(step, int)):
        raise ValueError("bytes where numbers are expected")
    encoding = bytes(_bytes(values.get(4, memoryview(b"")))).decode("utf-8")
    return RawImage(width, height, encoding, step, _bytes(values.get(6, memoryview(b""))))
