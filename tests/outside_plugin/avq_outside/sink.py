"""A sink: ``tally:FILE`` writes one line per frame, camera, number and how many boxes of each class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from avq import Sink
from avq.errors import DataError
from avq.types import Frame, Published


class TallySink:
    """Written on a thread of its own; ``labels`` are the bundle's class names."""

    wants_pixels = False

    def __init__(self, file: TextIO, labels: Sequence[str]) -> None:
        self._file = file
        self._labels = labels

    def write(self, message: Published, frame: Frame | None) -> None:
        seen = message.detections
        counts = Counter(self._labels[index] for index in seen.class_ids.tolist())
        told = " ".join(f"{label}={count}" for label, count in sorted(counts.items()))
        self._file.write(f"{seen.camera} {seen.seq} boxes={len(seen)} {told}".rstrip() + "\n")

    def close(self) -> None:
        self._file.close()


class TallySinkType:
    """Opens ``tally:FILE``."""

    schemes = ("tally",)

    def open(self, uri: str, *, labels: Sequence[str]) -> Sink:
        path = Path(uri.removeprefix("tally:"))
        try:
            return TallySink(path.open("w", encoding="utf-8"), labels)
        except OSError as error:
            raise DataError(f"{path} cannot be written", seen=str(error), fix="choose another file") from None
