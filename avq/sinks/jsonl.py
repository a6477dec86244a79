"""One line of JSON per published frame, on standard output or appended to a file as it happens."""

from __future__ import annotations

import errno
import os
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from avq.errors import DataError
from avq.hookspecs import Sink
from avq.types import Frame, Published


class JsonLinesSinkType:
    """``-`` is standard output. A file is written in place, so that another program can follow it.

    Readers of a FIFO may connect late and reconnect; messages that meet a full FIFO are missed.
    """

    schemes = ("-", "jsonl", ".jsonl", ".ndjson")

    def open(self, uri: str, *, labels: Sequence[str]) -> Sink:
        """Raises DataError when the file cannot be created."""
        name = uri.removeprefix("jsonl:")
        try:
            if name == "-":
                return JsonLinesSink(_standard_output(), labels)
            return JsonLinesSink(_writable(name), labels)
        except OSError as error:
            place = "standard output" if name == "-" else name
            raise DataError(
                f"{place} cannot be written", seen=str(error), fix="choose another file"
            ) from None


def _writable(name: str) -> BinaryIO:
    """Open without waiting for a reader or a serial line; a FIFO is opened at both ends, so writes never fail."""
    access = os.O_RDWR if Path(name).is_fifo() else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    descriptor = os.open(name, access | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o666)
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "wb", buffering=0)


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
        self._torn = False

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
