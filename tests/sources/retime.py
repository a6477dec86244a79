"""Matroska files whose frames come when a test says: OpenCV writes steady rates only."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

_CLUSTER, _DURATION, _SIMPLE_BLOCK = b"\x1f\x43\xb6\x75", b"\x44\x89\x88", 0xA3


def retimed(data: bytes, new_ms: Callable[[int], int]) -> bytes:
    """``data`` with every frame's time t in ms (below 32 s) replaced by ``new_ms(t)``, the duration with them."""
    out = bytearray(data)
    for at in _block_times(data):
        out[at : at + 2] = struct.pack(">h", new_ms(struct.unpack(">h", data[at : at + 2])[0]))
    at = data.index(_DURATION) + len(_DURATION)
    last_ms = struct.unpack(">d", data[at : at + 8])[0]
    out[at : at + 8] = struct.pack(">d", float(new_ms(int(last_ms))))
    return bytes(out)


def _block_times(data: bytes) -> Iterator[int]:
    """Where the 16-bit times of the first cluster's blocks stand."""
    at, length = _vint(data, data.index(_CLUSTER) + len(_CLUSTER))
    end = min(at + length, len(data))
    while at < end:
        element, (at, length) = data[at], _vint(data, at + 1)
        if element == _SIMPLE_BLOCK:
            yield at + 1  # after the number of the track
        at += length


def _vint(data: bytes, at: int) -> tuple[int, int]:
    """(first byte after it, value) of the EBML length at ``at``."""
    width = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + width], "big") & ((1 << (7 * width)) - 1)
    return at + width, value
