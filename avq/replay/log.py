"""What can be replayed: logs, videos, folders of pictures and drawn drives, all as one kind of thing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from avq.daemon.kinds import source_types
from avq.errors import AvqError, DataError, RequestError
from avq.hookspecs import FrameSource, SourceType
from avq.replay.frames import FrameKey, LoggedFrame
from avq.sources import open_source
from avq.sources.pictures import SUFFIXES
from avq.sources.scene import DrawnDrive, asked_drive
from avq.sources.uri import local_path
from avq.types import U8, StageTimes

CAMERA = "camera"
#: Pictures of a folder have no times; these stand in, for ``--newest`` only.
_NOMINAL_FPS = 30.0
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a flight record says of one published frame.

    Attributes:
        times: per stage, as measured on the road.
        bundle: digest of the bundle that served it; '' when the log does not say.
    """

    times: StageTimes
    bundle: str = ""


@dataclass(frozen=True)
class Log:
    """A drive that can be replayed any number of times.

    Attributes:
        uri: as it was named.
        live: its frames came from cameras that wait for nobody; False: frames wait for the engine.
        frames: opens the log anew and yields its pictures in order of arrival.
        recorded: stage times by frame, where the log has them.
        workers: threads that may decode at once; a file's one reader reads every frame in order.
        in_order: every frame must be loaded, one after the other, as from a video.
        start_unix_ns: of the first capture; 0 when unknown.
        remark: what could not be read of it, in words.
        digest: SHA-256 of what it holds, computed when asked for.
    """

    uri: str
    live: bool
    frames: Callable[[], Generator[LoggedFrame, None, None]]
    digest: Callable[[], str]
    recorded: Mapping[FrameKey, Recorded] = field(default_factory=dict)
    workers: int = 1
    in_order: bool = False
    start_unix_ns: int = 0
    remark: str = ""


def pictures_of(log: Log, wanted: Collection[FrameKey]) -> dict[FrameKey, U8]:
    """Pixels of a few frames, read from the log once more; those that cannot be read are missing."""
    found: dict[FrameKey, U8] = {}
    frames = log.frames()
    with closing(frames), suppress(EndOfLogError):
        for frame in frames:
            if frame.key in wanted or log.in_order:
                pixels = frame.load()
                if pixels is not None and frame.key in wanted:
                    found[frame.key] = pixels
            if len(found) == len(wanted):
                break
    return found


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
        from avq.replay.mcap_log import open_mcap

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


class EndOfLogError(Exception):
    """Raised by ``load`` of a frame after the last one: a file does not say beforehand how many it holds."""

    def __init__(self, remark: str) -> None:
        self.remark = remark
        super().__init__(remark)


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


def file_digest(path: Path) -> str:
    """SHA-256 of a file. Raises DataError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path} cannot be read", seen=str(error), fix="check the path") from None
    return digest.hexdigest()
