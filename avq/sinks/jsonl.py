"""One line of JSON per published frame, on standard output or appended to a file as it happens."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from avq.errors import DataError
from avq.hookspecs import Sink
from avq.types import Frame, Published


class JsonLinesSinkType:
    """``-`` is standard output. A file is written in place, so that another program can follow it."""

    schemes = ("-", "jsonl", ".jsonl", ".ndjson")

    def open(self, uri: str, *, labels: Sequence[str]) -> Sink:
        """Raises DataError when the file cannot be created."""
        name = uri.removeprefix("jsonl:")
        try:
            if name == "-":
                return JsonLinesSink(_standard_output(), labels)
            return JsonLinesSink(Path(name).open("wb", buffering=0), labels)
        except OSError as error:
            raise DataError(f"{name} cannot be written", seen=str(error), fix="choose another file") from None


def _standard_output() -> BinaryIO:
    """A descriptor of our own: a reader that hangs then holds no lock that the end of the process needs."""
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

    def write(self, message: Published, frame: Frame | None) -> None:
        self._encoder.encode_into(message.as_message(self._labels), self._line)
        self._line += b"\n"
        with memoryview(self._line) as line:
            done = 0
            while done < len(line):
                written = self._file.write(line[done:])
                if written is None:  # whoever shares it made it non-blocking
                    select.select([], [self._file], [])
                done += written or 0
        self._file.flush()

    def close(self) -> None:
        self._file.close()
