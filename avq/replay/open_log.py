"""Whatever can be replayed as one kind of thing: records, videos, folders of pictures and drawn drives."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path

from avq.daemon.kinds import source_types
from avq.errors import AvqError, RequestError
from avq.hookspecs import FrameSource, SourceType
from avq.replay.frames import LoggedFrame
from avq.replay.log import EndOfLogError, Log, file_digest
from avq.replay.mcap_log import open_mcap
from avq.sources import open_source
from avq.sources.pictures import SUFFIXES
from avq.sources.scene import DrawnDrive, asked_drive
from avq.sources.uri import local_path
from avq.types import U8

CAMERA = "camera"
#: Pictures of a folder have no times; these stand in, for ``--newest`` only.
_NOMINAL_FPS = 30.0


def open_log(uri: str, outside: Sequence[SourceType] = ()) -> Log:
    """The log at ``uri``: MCAP, video, folder, picture, or a scene:// drive with a number of frames.

    Raises:
        RequestError: a camera or stream, which cannot be asked twice, or a drive without an end.
        DataError: missing, unreadable, or without pictures.
    """
    if uri.startswith("scene://"):
        return _drawn(uri)
    path = local_path(uri)
    if path.suffix.lower() == ".mcap" and path.is_file():
        return open_mcap(uri)
    return _file(uri, (*source_types(), *outside))


def _drawn(uri: str) -> Log:
    drive, fps, count = asked_drive(uri)
    if count is None:
        raise RequestError(
            "a drawn drive has no end to replay to",
            seen=uri,
            fix=f"add {'&' if '?' in uri else '?'}frames=300",
        )

    def frames() -> Generator[LoggedFrame, None, None]:
        for index in range(count):
            at_ns = round(index * 1e9 / fps)
            yield LoggedFrame(CAMERA, index, at_ns, at_ns, partial(_drawn_pixels, drive, index))

    return Log(uri, live=True, frames=frames, digest=lambda: hashlib.sha256(uri.encode()).hexdigest())


def _drawn_pixels(drive: DrawnDrive, index: int) -> U8:
    return drive.frame(index).pixels


def _file(uri: str, types: Sequence[SourceType]) -> Log:
    """Videos and pictures, by the daemon's own sources. They are opened once here to fail early."""
    source = open_source(uri, types)
    live = source.live
    source.close()
    if live:
        raise RequestError(
            "a live camera cannot be replayed",
            seen=uri,
            fix=f"record it first: avq run --bundle B --source {uri} --log drive.mcap",
        )
    return Log(
        uri, live=False, frames=lambda: _read_frames(uri, types), digest=lambda: _digest_of(local_path(uri))
    )


def _read_frames(uri: str, types: Sequence[SourceType]) -> Generator[LoggedFrame, None, None]:
    """Lazy reads of one source: the only worker that loads them calls ``read`` in order."""
    source = open_source(uri, types)
    reader = _Reader(source)
    fps = source.fps or _NOMINAL_FPS
    index = 0
    try:
        while not reader.ended:
            at_ns = round(index * 1e9 / fps)
            yield LoggedFrame(CAMERA, index, at_ns, at_ns, reader.read)
            index += 1
    finally:
        reader.close()


class _Reader:
    def __init__(self, source: FrameSource) -> None:
        self._source = source
        self.ended = False
        self._count = 0

    def read(self) -> U8 | None:
        if self.ended:
            raise EndOfLogError("")
        try:
            got = self._source.read()
        except AvqError as error:
            self.ended = True
            if self._count == 0:
                raise
            raise EndOfLogError(f"{error.what}; {error.seen}") from None
        if got is None:
            self.ended = True
            raise EndOfLogError(getattr(self._source, "remark", ""))
        self._count += 1
        return got[0]

    def close(self) -> None:
        self._source.close()


def _digest_of(path: Path) -> str:
    """Of a file's bytes; of a folder's picture names and bytes."""
    if not path.is_dir():
        return file_digest(path)
    whole = hashlib.sha256()
    for entry in sorted(path.iterdir()):
        if entry.is_file() and entry.suffix.lower() in SUFFIXES and not entry.name.startswith("."):
            whole.update(f"{entry.name}\0{file_digest(entry)}\n".encode())
    return whole.hexdigest()
