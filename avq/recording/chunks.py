"""Unpack chunks of MCAP files, which name their unpacked size: a few bytes may name gigabytes."""

from __future__ import annotations

from dataclasses import replace

from mcap.records import Chunk, McapRecord
from mcap.stream_reader import breakup_chunk

#: Bytes of the largest chunk that is unpacked; writers make chunks of a few megabytes.
MAX_CHUNK_BYTES = 1 << 27


def chunk_records(chunk: Chunk) -> list[McapRecord]:
    """Return the records of a chunk.

    Raises:
        ValueError: it is damaged, or larger than ``MAX_CHUNK_BYTES`` or than it says.
        Exception: decompressors raise their own types.
    """
    size = chunk.uncompressed_size
    if size > MAX_CHUNK_BYTES:
        raise ValueError(f"a chunk would unpack to {size} bytes, more than {MAX_CHUNK_BYTES}")
    if chunk.compression == "zstd":
        chunk = replace(chunk, data=_zstd(chunk.data, size), compression="")
    elif chunk.compression == "lz4":
        chunk = replace(chunk, data=_lz4(chunk.data, size), compression="")
    records: list[McapRecord] = breakup_chunk(chunk, validate_crc=True)
    return records


def _zstd(data: bytes, size: int) -> bytes:
    """The frame names its size too, and the library allocates that."""
    import zstandard

    named = zstandard.frame_content_size(data)
    if named > size:
        raise ValueError(f"a chunk of {size} bytes holds a frame of {named}")
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=size)


def _lz4(data: bytes, size: int) -> bytes:
    import lz4.frame  # type: ignore[import-untyped,unused-ignore]

    decompressor = lz4.frame.LZ4FrameDecompressor()
    unpacked: bytes = decompressor.decompress(data, max_length=size + 1)
    if len(unpacked) > size:
        raise ValueError(f"a chunk of {size} bytes unpacks to more")
    return unpacked
