"""The little of the protobuf wire format that foxglove image messages need (no generated code, no dependency)."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping

from avq.recording.cdr import RawImage

_FIXED = {1: ("<Q", 8), 5: ("<I", 4)}


def fields(data: bytes) -> Mapping[int, int | memoryview]:
    """Field number -> last value: integers, or bytes of a length-delimited field. Raises ValueError."""
    return {number: value for number, value, _ in _walk(data)}


def replace_fields(data: bytes, changed: Mapping[int, bytes], drop: Collection[int] = ()) -> bytes:
    """The message without the fields ``drop``; ``changed`` replaces length-delimited fields by number."""
    kept = [bytes(span) for number, _, span in _walk(data) if number not in changed and number not in drop]
    new = [_number(number << 3 | 2) + _number(len(value)) + value for number, value in changed.items()]
    return b"".join((*kept, *new))


def varint_field(number: int, value: int) -> bytes:
    """One field of an integer >= 0."""
    return _number(number << 3) + _number(value)


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _walk(data: bytes) -> Iterator[tuple[int, int | memoryview, memoryview]]:
    """(field number, value, the bytes of the whole field), in order. Raises ValueError."""
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
            raise ValueError(f"wire type {kind} of field {number} is not protobuf 3")
        yield number, value, view[start:at]
    if at != len(view):
        raise ValueError(f"cut off: {len(view)} of {at} bytes")


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70 and at < len(view):
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("cut off inside a number")


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where bytes belong")
    return value


def foxglove_compressed_image(data: bytes) -> memoryview:
    """The encoded picture of a foxglove.CompressedImage."""
    return _bytes(fields(data).get(2, memoryview(b"")))


def foxglove_raw_image(data: bytes) -> RawImage:
    """A foxglove.RawImage."""
    found = fields(data)
    width, height, step = (found.get(key, 0) for key in (2, 3, 5))
    if not (isinstance(width, int) and isinstance(height, int) and isinstance(step, int)):
        raise ValueError("bytes where numbers belong")
    encoding = bytes(_bytes(found.get(4, memoryview(b"")))).decode("utf-8")
    return RawImage(width, height, encoding, step, _bytes(found.get(6, memoryview(b""))))
