"""The capture process: a fresh interpreter that reads one source and may be killed at any time.

Started as ``python -m avq.daemon.capture_process ANNOUNCE_FD CREDIT_FD SLOT_FD...``. It shares no lock with the
daemon: pictures go through slots it owns until it announces them, and it ends when the daemon's pipe closes.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from operator import attrgetter
from queue import Empty, SimpleQueue
from typing import Any

import msgspec
import numpy as np

from avq.daemon.capture_protocol import (
    STOP,
    UNREADABLE,
    Captured,
    CaptureSettings,
    Ended,
    Failed,
    Lost,
    Opened,
    Slot,
    Unframer,
    decode_settings,
    framed,
)
from avq.errors import AvqError, DataError, MachineError, UnreadablePictureError
from avq.hookspecs import FileSource, FrameSource, LiveSourceType, SourceType
from avq.types import U8, Frame

NO_FREE_SLOT = "no_free_slot"
REPEATED = "repeated"
_SAMPLES = 32  # rows and columns that are compared
_SHOW_AGAIN_NS = 1_000_000_000
_DEFAULT_FPS = 30.0


class Link:
    """The two pipes to the daemon. A thread collects free slots, so a hung source cannot keep us alive."""

    def __init__(self, announce_fd: int, credit_fd: int, slots: int) -> None:
        self.stopping = threading.Event()
        self._announce_fd = announce_fd
        self._credit_fd = credit_fd
        self._free: SimpleQueue[int] = SimpleQueue()
        for index in range(slots):
            self._free.put(index)

    def settings(self) -> CaptureSettings:
        """Wait for the first message; what follows it are single bytes."""
        unframer = Unframer()
        while data := os.read(self._credit_fd, 1):
            for body in unframer.feed(data):
                threading.Thread(target=self._collect, daemon=True).start()
                return decode_settings(body)
        os._exit(0)

    def _collect(self) -> None:
        while data := os.read(self._credit_fd, 4096):
            for byte in data:
                if byte == STOP:
                    self.stopping.set()
                self._free.put(byte)  # STOP also wakes a capture that waits for a slot
        os._exit(0)  # the daemon has ended

    def free_slot(self, *, wait: bool) -> int | None:
        """Take a slot to write; None when there is none, or the daemon requests the stop."""
        try:
            slot = self._free.get(block=wait)
        except Empty:
            return None
        return None if slot == STOP else slot

    def put_back(self, slot: int) -> None:
        """Return an unused slot."""
        self._free.put(slot)

    def send(self, message: msgspec.Struct) -> None:
        """Send a message; blocks while the pipe is full."""
        data = memoryview(framed(message))
        while data:
            data = data[os.write(self._announce_fd, data) :]


class Pacer:
    """Releases a recorded source at its own frame rate, where the newest frame is to win."""

    def __init__(self, fps: float) -> None:
        self._period_ns = int(1e9 / (fps or _DEFAULT_FPS))
        self._due_ns = time.monotonic_ns()

    def wait(self) -> None:
        time.sleep(max(0, self._due_ns - time.monotonic_ns()) / 1e9)
        self._due_ns += self._period_ns


class Repeats:
    """Recognises a picture that equals the one before bit for bit.

    A sparse sample decides nearly always; only when it is equal, the whole picture is compared.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sample = b""
        self._picture: U8 | None = None
        self._shown_ns = 0

    def again(self, pixels: U8, now_ns: int) -> bool:
        """Whether a picture is a repeat; one per second passes, so that a still picture is served too."""
        sample = pixels[
            :: max(1, pixels.shape[0] // _SAMPLES), :: max(1, pixels.shape[1] // _SAMPLES)
        ].tobytes()
        same = sample == self._sample and self._same_picture(pixels)
        self._sample, self._picture = sample, pixels
        if same and now_ns - self._shown_ns < _SHOW_AGAIN_NS:
            self.count += 1
            return True
        self._shown_ns = now_ns
        return False

    def _same_picture(self, pixels: U8) -> bool:
        before = self._picture
        assert before is not None
        if np.may_share_memory(before, pixels):  # the source writes over its own buffer: the sample must do
            return True
        return np.array_equal(before, pixels)


class Pump:
    """Moves pictures from the source into slots and counts those that met no free slot."""

    def __init__(self, source: FrameSource, settings: CaptureSettings, link: Link, slots: list[Slot]) -> None:
        self._source = source
        self._settings = settings
        self._link = link
        self._slots = slots
        self._no_free_slot = 0
        self._unreadable = 0
        self._repeats = Repeats()
        self._every = settings.policy == "every" or (settings.policy == "auto" and not source.live)
        self._pacer = None if self._every or source.live else Pacer(source.fps)
        self._watched = source.live and not self._every

    def run(self) -> None:
        """Run until the source ends, the limit is reached or the daemon requests the stop."""
        self._link.send(Opened(self._source.live, self._every, self._source.fps))
        read, limit = 0, self._settings.limit_if_every if self._every else None
        while not self._link.stopping.is_set() and (limit is None or read < limit):
            slot = self._link.free_slot(wait=True) if self._every else None
            if self._link.stopping.is_set():
                break
            try:
                got = self._source.read()
            except UnreadablePictureError:
                self._on_unreadable(slot)
                continue
            if got is None:
                break
            if self._pacer is not None:
                self._pacer.wait()
                got = (got[0], time.monotonic_ns())
            if self._watched and self._repeats.again(*got):
                self._link.send(Lost(self.lost()))
            else:
                self._hand_over(got, self._link.free_slot(wait=False) if slot is None else slot, read)
            read += 1

    def _on_unreadable(self, slot: int | None) -> None:
        """Count a picture that cannot be decoded: the source lives."""
        self._unreadable += 1
        if slot is not None:
            self._link.put_back(slot)
        self._link.send(Lost(self.lost()))

    def _hand_over(self, got: tuple[U8, int], slot: int | None, read: int) -> None:
        if slot is None:
            self._no_free_slot += 1
            self._link.send(Lost(self.lost()))
            return
        lost = self.lost()
        seq = self._settings.first_seq + read + self._unreadable + sum(self._source_lost().values())
        frame = Frame(self._settings.camera, seq, got[1], got[0])  # raises on what is no BGR picture
        self._slots[slot].write(frame.pixels)
        height_px, width_px = frame.pixels.shape[:2]
        self._link.send(Captured(slot, seq, frame.t_capture_ns, width_px, height_px, lost))

    def _source_lost(self) -> Mapping[str, int]:
        return self._source.lost if isinstance(self._source, FileSource) else {}

    def lost(self) -> dict[str, int]:
        """Return the frames dropped so far, by cause: no free slot, a repeat, or unreadable."""
        counts = Counter(self._source_lost())
        counts.update(
            {
                NO_FREE_SLOT: self._no_free_slot,
                REPEATED: self._repeats.count,
                UNREADABLE: self._unreadable,
            }
        )
        return {cause: count for cause, count in counts.items() if count}

    @property
    def remark(self) -> str:
        return self._source.remark if isinstance(self._source, FileSource) else ""


def source_types(providers: tuple[str, ...]) -> list[SourceType]:
    """Load the source types of ``module:name`` providers: functions that return them, or classes."""
    types: list[SourceType] = []
    for provider in providers:
        module, _, name = provider.partition(":")
        given = attrgetter(name)(importlib.import_module(module))()
        types.extend(given if isinstance(given, Sequence) else [given])
    return types


def capture(settings: CaptureSettings, link: Link, slots: list[Slot]) -> None:
    """Read the source to its end and send how it ended; raises nothing."""
    pump: Pump | None = None
    live = False
    try:
        types = source_types(settings.providers)
        live = expects_live(settings.uri, types)
        source = _open(settings, types)
        live = source.live
        try:
            pump = Pump(source, settings, link, slots)
            pump.run()
            link.send(Ended(pump.lost(), pump.remark))
        finally:
            source.close()
    except BrokenPipeError:
        return
    except Exception as error:
        passing = not isinstance(error, AvqError) or isinstance(error, DataError | MachineError)
        link.send(_failure(error, pump.lost() if pump else {}, again=live and passing))


def expects_live(uri: str, types: list[SourceType]) -> bool:
    """Whether a source that cannot be opened now may be available later: its type sets ``live``."""
    scheme = uri.partition("://")[0].lower() if "://" in uri else ""
    return any(isinstance(kind, LiveSourceType) and kind.live for kind in types if scheme in kind.schemes)


def _open(settings: CaptureSettings, types: list[SourceType]) -> FrameSource:
    import cv2

    from avq.sources.uri import open_source

    cv2.setNumThreads(1)
    return open_source(
        settings.uri,
        types,
        open_timeout_ms=settings.open_timeout_ms,
        read_timeout_ms=settings.read_timeout_ms,
    )


def _failure(error: Exception, lost: dict[str, int], *, again: bool) -> Failed:
    if isinstance(error, AvqError):
        return Failed(type(error).__name__, error.what, error.seen, error.fix, lost, again)
    where = traceback.format_exception_only(type(error), error)[-1].strip()
    frames = traceback.extract_tb(error.__traceback__)
    last = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    what, fix = f"the source broke: {where}", "report it to the source's author"
    return Failed("PluginError", what, last, fix, lost, again)


def main(argv: list[str]) -> Any:
    """Run the process; the arguments are inherited descriptors."""
    for ignored in (signal.SIGINT, signal.SIGTERM):  # the daemon ends the process, by its pipe
        signal.signal(ignored, signal.SIG_IGN)
    announce_fd, credit_fd, *slot_fds = (int(text) for text in argv)
    link = Link(announce_fd, credit_fd, len(slot_fds))
    capture(link.settings(), link, [Slot(fd) for fd in slot_fds])
    os._exit(0)  # no exit handlers: the thread of a decoder must not delay the exit


if __name__ == "__main__":
    main(sys.argv[1:])
