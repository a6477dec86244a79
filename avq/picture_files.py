"""Decode picture files from bytes: whole ones only, of a bounded size, whatever their name is."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from avq.types import U8, AnyArray

#: Pixels of the largest picture that is decoded, 400 MB as BGR; larger ones are refused before they are decoded.
MAX_PIXELS = 1 << 27
#: Bytes of the largest picture file.
MAX_BYTES = 1 << 30
#: Shorter side of JPEG files that are decoded at a quarter of their size, to 64 pixels or more.
_REDUCED_FROM_PX = 256
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_TIFF_FORMATS = {3: "H", 4: "I"}


#: Bits that cameras store in 16-bit files.
BIT_DEPTHS = (8, 10, 12, 14, 16)


def read_picture_file(path: Path, *, bit_depth: int = 16) -> U8:
    """Read and decode a picture file; ``bit_depth`` as in ``decode_picture``.

    The bytes are read here, so that the name may hold anything: OpenCV crashes on names that are not UTF-8.

    Returns:
        (H, W, 3) uint8 BGR.

    Raises:
        ValueError: it cannot be read, is damaged, or too large.
    """
    return decode_picture(_file_bytes(path), bit_depth=bit_depth)


def _file_bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes, more than {MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None


def bit_depth_of(largest: int) -> int:
    """Return the bits of a camera whose pictures have this largest value."""
    return next((bits for bits in BIT_DEPTHS if largest < 1 << bits), BIT_DEPTHS[-1])


def largest_value(data: bytes) -> int | None:
    """Return the largest value of a 16-bit picture file; None for other files, and for damaged ones."""
    if not _has_16_bits(data):
        return None
    try:
        pixels = _decoded(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except ValueError:
        return None
    return int(pixels.max(initial=0)) if pixels.dtype == np.uint16 else None


def largest_value_in(path: Path) -> int | None:
    """``largest_value`` of a file; None where it cannot be read."""
    try:
        return largest_value(_file_bytes(path))
    except ValueError:
        return None


def _has_16_bits(data: bytes) -> bool:
    """Whether the header may declare 16 bits; TIFF files are decoded to know."""
    if data.startswith(b"\x89PNG"):
        return len(data) > 24 and data[24] == 16
    if data[:2] in (b"P5", b"P6"):
        numbers = re.findall(rb"(?:#[^\n]*\n)|(\d+)", data[2:4096])
        found = [int(number) for number in numbers if number][:3]
        return len(found) == 3 and found[2] > 255
    return data[:4] in (b"II*\0", b"MM\0*")


def decode_picture(data: bytes | memoryview | U8, *, rotate: bool = True, bit_depth: int = 16) -> U8:
    """Decode a JPEG, PNG, BMP, WebP, TIFF or PNM file.

    Args:
        data: the whole file.
        rotate: turn the picture as its EXIF orientation says.
        bit_depth: bits that values of a 16-bit file have; the upper 8 of them are kept.

    Returns:
        (H, W, 3) uint8 BGR.

    Raises:
        ValueError: it is damaged, incomplete, or has more than ``MAX_PIXELS`` pixels.
    """
    flags = cv2.IMREAD_COLOR | (0 if rotate else cv2.IMREAD_IGNORE_ORIENTATION)
    pixels = _decoded(data, flags | cv2.IMREAD_ANYDEPTH)
    if pixels.dtype == np.uint16:
        return _u8(np.minimum(pixels >> (bit_depth - 8), 255))
    return _u8(pixels if pixels.dtype == np.uint8 else _decoded(data, flags))


def decode_grey(data: bytes, *, bit_depth: int = 16) -> U8:
    """Decode a picture file as grey, large JPEG files at a quarter of their size, to compare pictures coarsely.

    Returns:
        (H, W) uint8.

    Raises:
        ValueError: as ``decode_picture`` does.
    """
    size = declared_size_px(data[: 1 << 20]) if data.startswith(b"\xff\xd8") else None
    if size is not None and min(size) >= _REDUCED_FROM_PX:
        return _u8(_decoded(data, cv2.IMREAD_REDUCED_GRAYSCALE_4))
    pixels = decode_picture(data, bit_depth=bit_depth)
    return _u8(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY))


def _u8(pixels: AnyArray) -> U8:
    return np.asarray(pixels, np.uint8)


def _decoded(data: bytes | memoryview | U8, flags: int) -> AnyArray:
    encoded = np.frombuffer(data, np.uint8)
    if not encoded.size:
        raise ValueError("no bytes")
    require_pixels(encoded)
    try:
        pixels = cv2.imdecode(encoded, flags)
    except cv2.error as error:
        raise ValueError(f"OpenCV refuses it: {error.err or error}") from None
    if pixels is None:
        raise ValueError(f"{encoded.size} bytes are not a whole JPEG, PNG, BMP, WebP, TIFF or PNM image")
    return pixels


def require_pixels(data: bytes | memoryview | U8) -> None:
    """Raise ValueError for a picture whose header declares more than ``MAX_PIXELS`` pixels."""
    size = declared_size_px(bytes(data[: 1 << 20]))
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"{size[0]}x{size[1]} pixels, more than {MAX_PIXELS}")


def declared_size_px(head: bytes) -> tuple[int, int] | None:
    """Return (width, height) of a picture file as its header declares them; None where it declares none.

    Args:
        head: the first bytes of the file; a size that lies behind them is not found.
    """
    for magic, read_size in _SIZES:
        if head.startswith(magic):
            try:
                return read_size(head)
            except (struct.error, IndexError, ValueError):
                return None
    return None


def _png(head: bytes) -> tuple[int, int]:
    return struct.unpack_from(">II", head, 16)


def _jpeg(head: bytes) -> tuple[int, int] | None:
    """Walk over the segments to the start of a frame (ITU-T T.81, B.2.2)."""
    at = 2
    while at + 9 <= len(head):
        if head[at] != 0xFF:
            at += 1
        elif head[at + 1] in _JPEG_SIZES:
            height, width = struct.unpack_from(">HH", head, at + 5)
            return width, height
        elif head[at + 1] == 0xFF or head[at + 1] == 0x01 or 0xD0 <= head[at + 1] <= 0xD8:
            at += 1 if head[at + 1] == 0xFF else 2
        else:
            at += 2 + int(struct.unpack_from(">H", head, at + 2)[0])
    return None


def _bmp(head: bytes) -> tuple[int, int]:
    if struct.unpack_from("<I", head, 14)[0] == 12:
        return struct.unpack_from("<HH", head, 18)
    width, height = struct.unpack_from("<ii", head, 18)
    return abs(width), abs(height)


def _webp(head: bytes) -> tuple[int, int] | None:
    kind = head[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        bits = int(struct.unpack_from("<I", head, 21)[0])
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return None


def _tiff(head: bytes) -> tuple[int, int] | None:
    """Read tags 256 and 257 of the first directory, where it lies within ``head``."""
    order = "<" if head[:1] == b"I" else ">"
    at = int(struct.unpack_from(f"{order}I", head, 4)[0])
    size: dict[int, int] = {}
    for entry in range(struct.unpack_from(f"{order}H", head, at)[0]):
        tag, kind = struct.unpack_from(f"{order}HH", head, at + 2 + 12 * entry)
        if tag in (256, 257) and kind in _TIFF_FORMATS:
            (size[tag],) = struct.unpack_from(f"{order}{_TIFF_FORMATS[kind]}", head, at + 10 + 12 * entry)
    return (size[256], size[257]) if len(size) == 2 else None


def _pnm(head: bytes) -> tuple[int, int] | None:
    numbers = re.findall(rb"(?:#[^\n]*\n)|(\d+)", head[2:4096])
    found = [int(number) for number in numbers if number][:2]
    return (found[0], found[1]) if len(found) == 2 else None


_SIZES: tuple[tuple[bytes | tuple[bytes, ...], Callable[[bytes], tuple[int, int] | None]], ...] = (
    (b"\xff\xd8", _jpeg),
    (b"\x89PNG", _png),
    (b"BM", _bmp),
    (b"RIFF", _webp),
    ((b"II*\0", b"MM\0*"), _tiff),
    (tuple(b"P%d" % kind for kind in range(1, 7)), _pnm),
)
