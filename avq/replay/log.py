"""One drive that can be replayed: its frames, and what its record says of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from avq.errors import DataError
from avq.replay.frames import FrameKey, LoggedFrame
from avq.types import U8, StageTimes

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
        workers: threads that may decode at once, beside the one that reads the log.
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
    start_unix_ns: int = 0
    remark: str = ""


class EndOfLogError(Exception):
    """Raised by ``frames`` after the last one, with what could not be read."""

    def __init__(self, remark: str) -> None:
        self.remark = remark
        super().__init__(remark)


def pictures_of(log: Log, wanted: Collection[FrameKey]) -> dict[FrameKey, U8]:
    """Pixels of a few frames, read from the log once more; those that cannot be read are missing."""
    found: dict[FrameKey, U8] = {}
    frames = log.frames()
    with closing(frames), suppress(EndOfLogError):
        for frame in frames:
            if frame.key in wanted and (pixels := frame.load()) is not None:
                found[frame.key] = pixels
            if len(found) == len(wanted):
                break
    return found


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
