"""Pictures of a log in the order they reached the service, decoded ahead in a bounded pool."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import Any

from avq.types import U8

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
