"""One drive that can be replayed: its frames, and what its record says of them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any

from avq.errors import DataError
from avq.types import U8, StageTimes

# Pictures of a log in the order they reached the service, decoded ahead in a bounded pool.

FrameKey = tuple[str, int]
#: Pictures that may lie decoded: enough to bridge a slow one, 25 MB at 1280x720.
AHEAD = 8
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class LoggedFrame:
    """One picture of a log.

    Attributes:
        camera, seq: as the daemon counted it; logs of others are counted from 0.
        t_capture_ns: since the first capture of the log.
        arrival_ns: when it reached the inbox, on the same clock.
        load: its pixels, (H, W, 3) uint8 BGR; None when they cannot be read. Called once.
    """

    camera: str
    seq: int
    t_capture_ns: int
    arrival_ns: int
    load: Callable[[], U8 | None]

    @property
    def key(self) -> FrameKey:
        return self.camera, self.seq


@dataclass(frozen=True, slots=True)
class _Failed:
    error: BaseException


@dataclass(frozen=True, slots=True)
class Loaded:
    """A frame with its pixels, and what else was made of them ahead; None where they cannot be read."""

    frame: LoggedFrame
    pixels: U8 | None
    made: Any = None


_Item = tuple[LoggedFrame, "Future[tuple[U8 | None, Any]]"] | _Failed | None
Make = Callable[[U8], Any]


def loaded_ahead(
    frames: Generator[LoggedFrame, None, None], *, workers: int
) -> Generator[tuple[LoggedFrame, U8 | None], None, None]:
    """(frame, pixels) as ``made_ahead`` has them."""
    loaded = made_ahead(frames, None, workers=workers)
    with closing(loaded):
        for one in loaded:
            yield one.frame, one.pixels


def made_ahead(
    frames: Generator[LoggedFrame, None, None], make: Make | None, *, workers: int
) -> Generator[Loaded, None, None]:
    """The pictures in the order of ``frames``; at most ``AHEAD`` are decoded before they are asked for.

    The log is read on a thread of its own, ``workers`` more decode, and ``make`` something of the pixels. What
    any of this raises is raised here, at the place in the order where it happened.
    """
    queue: Queue[_Item] = Queue(AHEAD)
    stopped = threading.Event()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="avq-decode")
    reader = threading.Thread(target=_read, args=(frames, pool, queue, stopped, make), daemon=True)
    reader.start()
    try:
        while (item := queue.get()) is not None:
            if isinstance(item, _Failed):
                raise item.error
            frame, future = item
            yield Loaded(frame, *future.result())
    finally:
        stopped.set()
        with suppress(Empty):  # a reader that waits for room sees the stop
            queue.get_nowait()
        reader.join()
        pool.shutdown(wait=True, cancel_futures=True)
        frames.close()  # nobody reads any more


def _read(
    frames: Iterable[LoggedFrame],
    pool: ThreadPoolExecutor,
    queue: Queue[_Item],
    stopped: threading.Event,
    make: Make | None,
) -> None:
    last: _Item = None
    try:
        for frame in frames:
            if not _put(queue, (frame, pool.submit(_load, frame, make)), stopped):
                return
    except BaseException as error:
        last = _Failed(error)
    _put(queue, last, stopped)


def _load(frame: LoggedFrame, make: Make | None) -> tuple[U8 | None, Any]:
    pixels = frame.load()
    return pixels, None if pixels is None or make is None else make(pixels)


def _put(queue: Queue[_Item], item: _Item, stopped: threading.Event) -> bool:
    while not stopped.is_set():
        with suppress(Full):
            queue.put(item, timeout=_POLL_S)
            return True
    return False


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
