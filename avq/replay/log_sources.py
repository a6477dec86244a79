"""Open sources that can be replayed as a ``Log``: MCAP files, videos, folders of pictures and drawn drives."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from avq.daemon.registry import source_types
from avq.errors import AvqError, RequestError, UnreadablePictureError
from avq.hookspecs import FileSource, FrameSource, SourceType
from avq.replay.log import EndOfLogError, Log, LoggedFrame, file_digest
from avq.replay.mcap_log import open_mcap
from avq.sources import open_source
from avq.sources.files import SUFFIXES
from avq.sources.scene import DrawnDrive, asked_drive
from avq.sources.uri import local_path
from avq.types import U8

CAMERA = "camera"
#: Frame rate of sources without times, such as folders; used with ``--newest`` only.
_NOMINAL_FPS = 30.0


def open_log(uri: str, outside: Sequence[SourceType] = ()) -> Log:
    """Open the log at ``uri``: MCAP, video, folder, picture, or a scene:// drive with a number of frames.

    Args:
        uri: path or URI.
        outside: source types of plugins.

    Raises:
        RequestError: the source is a camera or stream, which cannot be read twice, or a drive without an end.
        DataError: it is missing, unreadable, or holds no pictures.
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
            "a scene:// drive without a number of frames cannot be replayed: it has no end",
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
    """Open videos and pictures with the daemon's sources; opens the source once here to fail early."""
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
    """Read a source in order, on the calling thread; the frames are loaded already."""
    source = open_source(uri, types)
    fps = source.fps or _NOMINAL_FPS
    at_ns, index = -1, 0
    with closing(source):
        while True:
            lost_before = _lost(source)
            pixels = _next_picture(source, first=index == 0)
            for _ in range(_lost(source) - lost_before):
                at_ns = max(at_ns + 1, round(index * 1e9 / fps))
                yield _loaded(index, at_ns, None)
                index += 1
            at_ns = max(at_ns + 1, _recorded_ns(source, round(index * 1e9 / fps)))
            yield _loaded(index, at_ns, pixels)
            index += 1


def _loaded(index: int, at_ns: int, pixels: U8 | None) -> LoggedFrame:
    return LoggedFrame(CAMERA, index, at_ns, at_ns, partial(_identity, pixels))


def _lost(source: FrameSource) -> int:
    """Pictures that the source skipped so far; each takes a frame number."""
    return sum(source.lost.values()) if isinstance(source, FileSource) else 0


def _next_picture(source: FrameSource, *, first: bool) -> U8 | None:
    """Read the next picture; None for one that cannot be read.

    Raises EndOfLogError after the last one; an error after the first ends the log there.
    """
    try:
        entry = source.read()
    except UnreadablePictureError:
        return None
    except AvqError as error:
        if first:
            raise
        raise EndOfLogError(f"{error.what}; {error.seen}") from None
    if entry is None:
        raise EndOfLogError(source.remark if isinstance(source, FileSource) else "")
    return entry[0]


def _recorded_ns(source: FrameSource, nominal_ns: int) -> int:
    """Return the time of the last picture since the first: phones and dashcams have no constant frame rate."""
    position_ns = source.position_ns if isinstance(source, FileSource) else None
    return nominal_ns if position_ns is None else position_ns


def _identity(pixels: U8 | None) -> U8 | None:
    return pixels


def _digest_of(path: Path) -> str:
    """Return the digest of a file's bytes; of a folder's picture names and bytes."""
    if not path.is_dir():
        return file_digest(path)
    whole = hashlib.sha256()
    for entry in sorted(path.iterdir()):
        if entry.is_file() and entry.suffix.lower() in SUFFIXES and not entry.name.startswith("."):
            whole.update(os.fsencode(entry.name) + f"\0{file_digest(entry)}\n".encode())
    return whole.hexdigest()
