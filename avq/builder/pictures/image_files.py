"""Detect truncated picture files from their container: decoders fill the missing rest with grey."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable


def damage(data: bytes) -> str:
    """Return why the file is no complete picture, or "" when no check fails."""
    for magic, check in _CHECKS:
        if data.startswith(magic):
            return check(data)
    return (
        f"not a JPEG, PNG, BMP, WebP, TIFF or PPM file (begins with {data[:4]!r})" if data else "empty file"
    )


def _jpeg(data: bytes) -> str:
    """Find the end marker after the last scan; inside a scan 0xFF is escaped, and thumbnails come earlier."""
    scan = data.rfind(b"\xff\xda")
    return "" if 0 < scan < data.rfind(b"\xff\xd9") else "truncated JPEG"


def _bmp(data: bytes) -> str:
    if len(data) < 26:
        return "truncated BMP"
    pixels_at = struct.unpack_from("<I", data, 10)[0]
    size = struct.unpack_from("<I", data, 2)[0]
    return "truncated BMP" if len(data) < max(size, pixels_at + 1) else ""


def _png(data: bytes) -> str:
    return "" if data.rfind(b"IEND") > 0 else "truncated PNG"


def _webp(data: bytes) -> str:
    whole = data[8:12] == b"WEBP" and len(data) >= struct.unpack_from("<I", data, 4)[0] + 8
    return "" if whole else "truncated WebP"


def _tiff(data: bytes) -> str:
    """Check the directory's offset: writers that put the directory last truncate it first."""
    directory_at = struct.unpack_from("<I" if data[:2] == b"II" else ">I", data, 4)[0] if len(data) > 7 else 0
    return "" if 8 <= directory_at < len(data) - 2 else "truncated TIFF"


def _pnm(data: bytes) -> str:
    """Header: magic, width, height, largest value; comments may stand between them."""
    fields = re.match(
        rb"P([56])(?:\s+|#[^\n]*\n)+(\d+)(?:\s+|#[^\n]*\n)+(\d+)(?:\s+|#[^\n]*\n)+(\d+)\s", data
    )
    if fields is None:
        return "damaged PPM or PGM header"
    kind, width, height, largest = (int(field) for field in fields.groups())
    size = width * height * (3 if kind == 6 else 1) * (2 if largest > 255 else 1)
    return "truncated PPM or PGM" if len(data) - fields.end() < size else ""


def _pointer(data: bytes) -> str:
    return f"a git-lfs pointer of {len(data)} bytes, not the picture"


_CHECKS: tuple[tuple[bytes, Callable[[bytes], str]], ...] = (
    (b"\xff\xd8", _jpeg),
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"BM", _bmp),
    (b"RIFF", _webp),
    (b"II*\0", _tiff),
    (b"MM\0*", _tiff),
    (b"P5", _pnm),
    (b"P6", _pnm),
    (b"version https://git-lfs", _pointer),
)
