"""One line of JSON per published frame, on standard output or appended to a file as it happens.

A file that exists is continued; a line that a killed process left unfinished is ended first.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from avq.atomic_file import PRIVATE_MODE, lock_descriptor
from avq.errors import DataError
from avq.hookspecs import Sink
from avq.output_lock import require_unlocked, writer_exists
from avq.types import Frame, Published


class JsonLinesSinkType:
    """``-`` is standard output. A file is written in place, so that another program can follow it.

    One writer at a time has a file or FIFO. Readers of a FIFO may connect late and reconnect; messages that meet a
    full FIFO are missed.
    """

    schemes = ("-", "jsonl", ".jsonl", ".ndjson")

    def open(self, uri: str, *, labels: Sequence[str]) -> Sink:
        """Raises DataError when the file cannot be created."""
        name = _name(uri)
        try:
            if name == "-":
                return JsonLinesSink(_standard_output(), labels)
            return JsonLinesSink(_appending(name), labels)
        except OSError as error:
            place = "standard output" if name == "-" else name
            raise DataError(
                f"{place} cannot be written", seen=str(error), fix="choose another file"
            ) from None

    def require_free(self, uri: str) -> None:
        """Raise DataError when another process writes the file."""
        path = Path(_name(uri))
        if path.is_file() or path.is_fifo():
            require_unlocked(path, path)


def _name(uri: str) -> str:
    return uri.removeprefix("jsonl:")


def _appending(name: str) -> BinaryIO:
    """Open at the end, without waiting for a reader or a serial line.

    A FIFO is opened at both ends, so writes never fail.
    """
    access = os.O_RDWR | os.O_APPEND | os.O_CREAT
    try:
        descriptor = _open(name, access)
    except PermissionError:
        if not Path(name).exists():
            raise
        descriptor = _open(name, os.O_WRONLY | os.O_APPEND)  # a file that cannot be read
    mode = os.fstat(descriptor).st_mode
    if (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)) and not lock_descriptor(descriptor):
        os.close(descriptor)
        raise writer_exists(Path(name))
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "wb", buffering=0)


def _open(name: str, access: int) -> int:
    return os.open(name, access | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, PRIVATE_MODE)


def _ends_within_a_line(file: BinaryIO) -> bool:
    """Whether a regular file has a last line without its end; False where it cannot be read."""
    try:
        size = os.fstat(file.fileno()).st_size
        return size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
    except (OSError, ValueError):
        return False


def _standard_output() -> BinaryIO:
    """Duplicate standard output, so that a blocked reader holds no lock that the exit needs."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, "it is closed")
    sys.stdout.flush()
    return os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)


class JsonLinesSink:
    """Keys: camera, seq, t_capture_ns, age_ms, late, mode, bundle, detections[{label, score, box_xyxy_px}].

    Args:
        file: binary, unbuffered or flushed after every line; closed with the sink.
        labels: class names by id.
    """

    wants_pixels = False

    def __init__(self, file: BinaryIO, labels: Sequence[str]) -> None:
        self._file = file
        self._labels = tuple(labels)
        self._encoder = msgspec.json.Encoder()
        self._line = bytearray()
        self._torn = _ends_within_a_line(file)

    def write(self, message: Published, frame: Frame | None) -> None:
        self._encoder.encode_into(message.as_message(self._labels), self._line)
        self._line += b"\n"
        if self._torn:  # a full disk took a part of the last line: end it
            self._line[:0] = b"\n"
        with memoryview(self._line) as line:
            done = 0
            try:
                while done < len(line):
                    written = self._file.write(line[done:])
                    if written is None:  # another process made it non-blocking
                        select.select([], [self._file], [])
                    done += written or 0
            finally:
                self._torn = 0 < done < len(line) or (self._torn and done == 0)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class CallbackSink:
    """Calls ``function(message, frame)`` per published frame.

    Args:
        function: runs on the sink's thread; an exception ends this sink, not the run.
        wants_pixels: whether it gets the frame (a copy it may keep) or None.
    """

    def __init__(
        self, function: Callable[[Published, Frame | None], None], *, wants_pixels: bool = True
    ) -> None:
        self.wants_pixels = wants_pixels
        self._function = function

    def write(self, message: Published, frame: Frame | None) -> None:
        self._function(message, frame)

    def close(self) -> None:
        """Nothing to free."""
