"""Messages between capture process and daemon, their framing on a pipe, and the shared picture memory.

Child to daemon: length-prefixed MessagePack. Daemon to child: the settings once, framed alike, then single bytes:
a slot number that is free again, or STOP.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from typing import Literal

import msgspec
import numpy as np

from avq.text import map_texts, utf8
from avq.types import U8

Policy = Literal["auto", "newest", "every"]
STOP = 255
#: Cause of pictures that the source could not decode.
UNREADABLE = "unreadable"
_LENGTH = struct.Struct("<I")


class CaptureSettings(msgspec.Struct, frozen=True):
    """How one camera is captured.

    Attributes:
        camera: id.
        uri: of the source.
        policy: "auto": newest for live sources, every frame for files.
        first_seq: number of the first frame (a replaced process counts on).
        limit_if_every: where every frame counts, stop after so many; None for no limit.
        providers: "module:function" names of functions that return source types.
        open_timeout_ms, read_timeout_ms: given to the source.
    """

    camera: str
    uri: str
    policy: Policy = "auto"
    first_seq: int = 0
    limit_if_every: int | None = None
    providers: tuple[str, ...] = ("avq.daemon.registry:source_types",)
    open_timeout_ms: int = 5000
    read_timeout_ms: int = 2000


class Opened(msgspec.Struct, frozen=True, tag=True):
    """The source is open. ``every``: frames are waited for, none is dropped at capture."""

    live: bool
    every: bool
    fps: float


class Captured(msgspec.Struct, frozen=True, tag=True):
    """A picture lies in ``slot``. ``lost`` counts frames dropped so far, by cause, since the process began."""

    slot: int
    seq: int
    t_capture_ns: int
    width_px: int
    height_px: int
    lost: dict[str, int]


class Lost(msgspec.Struct, frozen=True, tag=True):
    """A frame came and was not handed over: the source lives, and these are the counts."""

    lost: dict[str, int]


class Ended(msgspec.Struct, frozen=True, tag=True):
    """The source has ended, or the daemon stopped it."""

    lost: dict[str, int]
    remark: str = ""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The source broke. ``kind`` is a class of avq.errors; ``again``: a later try may do better."""

    kind: str
    what: str
    seen: str
    fix: str
    lost: dict[str, int]
    again: bool = False


Message = Opened | Captured | Lost | Ended | Failed
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(
    Opened | Captured | Lost | Ended | Failed
)


def framed(message: msgspec.Struct) -> bytes:
    """Encode one message: length and MessagePack. Text that is not UTF-8 is escaped."""
    try:
        body = _encoder.encode(message)
    except UnicodeEncodeError:
        fields = {name: map_texts(value, utf8) for name, value in msgspec.structs.asdict(message).items()}
        body = _encoder.encode(type(message)(**fields))
    return _LENGTH.pack(len(body)) + body


def framed_settings(settings: CaptureSettings) -> bytes:
    """Encode the first message to a capture process; the bytes of a file name are kept."""
    return framed(msgspec.structs.replace(settings, uri=os.fsencode(settings.uri).decode("latin-1")))


class Unframer:
    """Splits a byte stream into messages; an incomplete last one is ignored."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Add bytes; yield the bodies of complete messages."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield body


def decode(body: bytes) -> Message:
    """Decode one message of the capture process."""
    return _decoder.decode(body)


def decode_settings(body: bytes) -> CaptureSettings:
    """Decode the first message to a capture process."""
    settings = msgspec.msgpack.decode(body, type=CaptureSettings)
    return msgspec.structs.replace(settings, uri=os.fsdecode(settings.uri.encode("latin-1")))


class Slot:
    """Shared memory for one picture of any size: a memfd, inherited by descriptor, never locked.

    Args:
        fd: a memfd; ``Slot.create()`` creates one, the capture process inherits it.
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
