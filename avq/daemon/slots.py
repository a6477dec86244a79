"""Picture memory shared with a capture process: one memfd per slot, inherited by descriptor, never locked.

A slot belongs to exactly one side at a time; it changes hands by a message on a pipe. Slots grow with the pictures
and cannot shrink (sealed), so a broken writer cannot take memory away under a reader.
"""

from __future__ import annotations

import fcntl
import mmap
import os

import numpy as np

from avq.types import U8


class Slot:
    """Shared memory for one picture of any size.

    Args:
        fd: a memfd; ``Slot.create()`` makes one, the capture process gets its number.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map: mmap.mmap | None = None
        self._view: U8 = np.empty(0, np.uint8)

    @classmethod
    def create(cls) -> Slot:
        fd = os.memfd_create("avq-slot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return cls(fd)

    def write(self, pixels: U8) -> None:
        """Copy a picture in, growing the memory when it is larger than any before."""
        if pixels.nbytes > self._view.size:
            os.ftruncate(self.fd, max(pixels.nbytes, os.fstat(self.fd).st_size))
            self._remap()
        np.copyto(self._view[: pixels.nbytes].reshape(pixels.shape), pixels)

    def pixels(self, width_px: int, height_px: int) -> U8:
        """The picture in the slot, (H, W, 3) uint8, not copied: valid until the slot is given back."""
        needed = width_px * height_px * 3
        if needed > self._view.size:
            self._remap()
        return self._view[:needed].reshape(height_px, width_px, 3)

    def _remap(self) -> None:
        """Map the whole file. An older map lives on until the last view of it is gone."""
        self._map = mmap.mmap(self.fd, os.fstat(self.fd).st_size)
        self._view = np.frombuffer(self._map, np.uint8)

    def close(self) -> None:
        """Close the descriptor; pictures still in use stay valid."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self._map, self._view = None, np.empty(0, np.uint8)
