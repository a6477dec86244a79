"""A recorded drive as a sequence of frames: read on one thread, decoded ahead on others."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any

from avq.errors import DataError
from avq.types import U8, LatencyBudget, StageTimes

FrameKey = tuple[str, int]
#: Decoded pictures that may wait in the queue: enough to bridge a slow one, 25 MB at 1280x720.
AHEAD = 8
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class LoggedFrame:
    """One picture of a log.

    Attributes:
        camera: camera id.
        seq: sequence number of the daemon; in logs of other tools counted from 0.
        t_capture_ns: nanoseconds since the first capture of the log.
        arrival_ns: arrival in the inbox, on the same clock.
        load: returns the pixels, (H, W, 3) uint8 BGR, or None when they cannot be read; called once.
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
class LoadedFrame:
    """A frame with its pixels.

    Attributes:
        pixels: (H, W, 3) uint8 BGR; None when they cannot be read.
        prepared: result of the ``prepare`` function of ``prepare_ahead``; None without one.
    """

    frame: LoggedFrame
    pixels: U8 | None
    prepared: Any = None


_Item = tuple[LoggedFrame, "Future[tuple[U8 | None, Any]]"] | _Failed | None
Prepare = Callable[[U8], Any]


def load_ahead(
    frames: Generator[LoggedFrame, None, None], *, workers: int
) -> Generator[tuple[LoggedFrame, U8 | None], None, None]:
    """Yield (frame, pixels) as ``prepare_ahead`` does; pixels are (H, W, 3) uint8 BGR or None."""
    loaded_frames = prepare_ahead(frames, None, workers=workers)
    with closing(loaded_frames):
        for loaded in loaded_frames:
            yield loaded.frame, loaded.pixels


def prepare_ahead(
    frames: Generator[LoggedFrame, None, None], prepare: Prepare | None, *, workers: int
) -> Generator[LoadedFrame, None, None]:
    """Yield the pictures in the order of ``frames``; at most ``AHEAD`` are decoded in advance.

    One thread reads the log, ``workers`` threads decode the pictures and call ``prepare`` with the pixels. An
    exception on any of them is raised here, at its place in the order.
    """
    queue: Queue[_Item] = Queue(AHEAD)
    stopped = threading.Event()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="avq-decode")
    reader = threading.Thread(target=_read, args=(frames, pool, queue, stopped, prepare), daemon=True)
    reader.start()
    try:
        while (item := queue.get()) is not None:
            if isinstance(item, _Failed):
                raise item.error
            frame, future = item
            yield LoadedFrame(frame, *future.result())
    finally:
        stopped.set()
        with suppress(Empty):  # a reader that waits for room in the queue sees the stop
            queue.get_nowait()
        reader.join()
        pool.shutdown(wait=True, cancel_futures=True)
        frames.close()


def _read(
    frames: Iterable[LoggedFrame],
    pool: ThreadPoolExecutor,
    queue: Queue[_Item],
    stopped: threading.Event,
    prepare: Prepare | None,
) -> None:
    last: _Item = None
    try:
        for frame in frames:
            if not _put(queue, (frame, pool.submit(_load, frame, prepare)), stopped):
                return
    except BaseException as error:
        last = _Failed(error)
    _put(queue, last, stopped)


def _load(frame: LoggedFrame, prepare: Prepare | None) -> tuple[U8 | None, Any]:
    pixels = frame.load()
    return pixels, None if pixels is None or prepare is None else prepare(pixels)


def _put(queue: Queue[_Item], item: _Item, stopped: threading.Event) -> bool:
    while not stopped.is_set():
        with suppress(Full):
            queue.put(item, timeout=_POLL_S)
            return True
    return False


_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class RecordedTimes:
    """Stage times of one published frame in a flight record.

    Attributes:
        times: measured in the vehicle.
        bundle: digest of the bundle that served the frame; "" when the log does not hold it.
        age_ns: from capture to publication.
        deadline_ns: largest age that was not late; 0 when the log does not hold it.
    """

    times: StageTimes
    bundle: str = ""
    age_ns: int = 0
    deadline_ns: int = 0


@dataclass(frozen=True, slots=True)
class Taken:
    """One published frame of the record.

    Attributes:
        key: camera and sequence number.
        t_capture_ns: capture, on the clock of the log.
        arrival_ns: estimated arrival in the inbox, on the same clock.
        times: recorded stage times; the queue time starts at the capture.
        age_ns: recorded age at publication.
    """

    key: FrameKey
    t_capture_ns: int
    arrival_ns: int
    times: StageTimes
    age_ns: int

    @property
    def taken_ns(self) -> int:
        return self.t_capture_ns + self.times.queue_ns

    @property
    def done_ns(self) -> int:
        return self.t_capture_ns + self.age_ns


@dataclass(frozen=True, slots=True)
class RunLimits:
    """Limits and totals of the run that recorded a log, from its events ``run_started`` and ``run_ended``.

    Attributes:
        budget: deadline, window and tolerated share.
        deadlines_ns: camera -> its own deadline.
        costs_ns: bundle digest -> service time of one frame on the unloaded machine.
        captured: camera -> captured frames; None when the record has no end.
        live: cameras whose frames do not wait; None when the record has no end.
    """

    budget: LatencyBudget
    deadlines_ns: Mapping[str, int] = field(default_factory=dict)
    costs_ns: Mapping[str, float] = field(default_factory=dict)
    captured: Mapping[str, int] | None = None
    live: frozenset[str] | None = None


@dataclass(frozen=True)
class Log:
    """A drive that can be replayed any number of times.

    Attributes:
        uri: path or URI as given by the user.
        live: True for frames of cameras, which do not wait for the engine; False for files, which do.
        frames: opens the log again and yields its pictures in order of arrival.
        digest: returns the SHA-256 of the content, computed on the call.
        recorded: stage times by frame, where the log has them.
        workers: threads that may decode at once, in addition to the one that reads the log.
        start_unix_ns: Unix time of the first capture; 0 when unknown.
        remark: describes the part that could not be read; "" when all could.
        limits: of the run that recorded the log; None when the log does not hold them.
        taken: published frames in the recorded order, with estimated arrivals; None for logs of other tools, and
            where one loop cannot have served them in these times.
        frames_as_taken: as ``frames``, but in the recorded order, each arriving when it was taken; None without
            ``taken``.
    """

    uri: str
    live: bool
    frames: Callable[[], Generator[LoggedFrame, None, None]]
    digest: Callable[[], str]
    recorded: Mapping[FrameKey, RecordedTimes] = field(default_factory=dict)
    workers: int = 1
    start_unix_ns: int = 0
    remark: str = ""
    limits: RunLimits | None = None
    taken: Sequence[Taken] | None = None
    frames_as_taken: Callable[[], Generator[LoggedFrame, None, None]] | None = None


class EndOfLogError(Exception):
    """Raised by ``Log.frames`` after the last frame; ``remark`` describes what could not be read."""

    def __init__(self, remark: str) -> None:
        self.remark = remark
        super().__init__(remark)


def read_pictures(log: Log, keys: Collection[FrameKey]) -> dict[FrameKey, U8]:
    """Read the pixels of a few frames from the log again.

    Returns:
        Frame key -> (H, W, 3) uint8 BGR; frames that cannot be read are missing.
    """
    pictures: dict[FrameKey, U8] = {}
    frames = log.frames()
    with closing(frames), suppress(EndOfLogError):
        for frame in frames:
            if frame.key in keys and (pixels := frame.load()) is not None:
                pictures[frame.key] = pixels
            if len(pictures) == len(keys):
                break
    return pictures


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. Raises DataError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path} cannot be read", seen=str(error), fix="check the path") from None
    return digest.hexdigest()
