"""Whatever can be replayed as one kind of thing: records, videos, folders of pictures and drawn drives."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from avq.daemon.registry import source_types
from avq.errors import AvqError, RequestError
from avq.hookspecs import FrameSource, SourceType
from avq.replay.frames import LoggedFrame
from avq.replay.log import EndOfLogError, Log, file_digest
from avq.replay.mcap_log import open_mcap
from avq.sources import open_source
from avq.sources.files import SUFFIXES
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
    """One source, read in order on the thread that asks; to load a frame is to take what was read."""
    source = open_source(uri, types)
    fps = source.fps or _NOMINAL_FPS
    at_ns = -1
    with closing(source):
        for index in itertools.count():
            pixels = _next_picture(source, first=index == 0)
            at_ns = max(at_ns + 1, _recorded_ns(source, round(index * 1e9 / fps)))
            yield LoggedFrame(CAMERA, index, at_ns, at_ns, partial(_held, pixels))


def _next_picture(source: FrameSource, *, first: bool) -> U8:
    """Raises EndOfLogError after the last one; what breaks after the first one ends the log there."""
    try:
        got = source.read()
    except AvqError as error:
        if first:
            raise
        raise EndOfLogError(f"{error.what}; {error.seen}") from None
    if got is None:
        raise EndOfLogError(getattr(source, "remark", ""))
    return got[0]


def _recorded_ns(source: FrameSource, nominal_ns: int) -> int:
    """When the last picture was taken, since the first: phones and dashcams keep no steady rate."""
    position_ns: int | None = getattr(source, "position_ns", None)
    return nominal_ns if position_ns is None else position_ns


def _held(pixels: U8) -> U8:
    return pixels


def _digest_of(path: Path) -> str:
    """Of a file's bytes; of a folder's picture names and bytes."""
    if not path.is_dir():
        return file_digest(path)
    whole = hashlib.sha256()
    for entry in sorted(path.iterdir()):
        if entry.is_file() and entry.suffix.lower() in SUFFIXES and not entry.name.startswith("."):
            whole.update(f"{entry.name}\0{file_digest(entry)}\n".encode())
    return whole.hexdigest()
