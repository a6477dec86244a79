"""Read .npz parts: sizes are checked before anything is unpacked, and nothing is unpickled."""

from __future__ import annotations

import io
import zipfile

import numpy as np
from numpy.lib import format as npy

from avq.types import AnyArray

#: Bytes that all arrays of a part may unpack to.
MAX_BYTES = 1 << 30
#: Above this an archive must not unpack to more than a hundred times its bytes.
TRUSTED_BYTES = 1 << 26
MAX_RATIO = 100


def read_npz(data: bytes) -> dict[str, AnyArray]:
    """Return name -> array of an .npz file.

    Raises:
        ValueError: it is damaged, holds objects, or unpacks to more than the limits allow.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _require_sizes(archive.infolist(), len(data))
            return {info.filename.removesuffix(".npy"): _array(archive, info) for info in archive.infolist()}
    except ValueError:
        raise
    except (
        Exception
    ) as error:  # zipfile and its decompressors raise their own types, and more with each release
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _require_sizes(members: list[zipfile.ZipInfo], packed_bytes: int) -> None:
    total = sum(info.file_size for info in members)
    if total > MAX_BYTES or (total > TRUSTED_BYTES and total > MAX_RATIO * packed_bytes):
        raise ValueError(f"{packed_bytes} bytes that would unpack to {total}")


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> AnyArray:
    """Read one member; its header must name no more than the member holds."""
    with archive.open(info) as file:
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(
            npy.read_magic(file)
        )
        if read_header is None:
            raise ValueError(f"'{info.filename}' has a format of another release")
        shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError(f"'{info.filename}' holds objects")
    named = dtype.itemsize * int(np.prod([int(size) for size in shape], dtype=object))
    if named > info.file_size:
        raise ValueError(f"'{info.filename}' names {named} bytes and holds {info.file_size}")
    with archive.open(info) as file:
        array: AnyArray = npy.read_array(file, allow_pickle=False)
    return array
