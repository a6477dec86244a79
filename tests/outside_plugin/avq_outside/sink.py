"""A sink: ``tally:FILE`` writes one line per frame: camera, number, boxes of each class; and raises an event.

It has every optional protocol of a sink: TimingSink, EventSink, AlertSource, ReportingSink, and UriChecker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from avq import Sink
from avq.errors import DataError, RequestError
from avq.types import Frame, Published, StageTimes


class TallySink:
    """Written on a thread of its own; ``labels`` are the bundle's class names."""

    wants_pixels = False
    events_only = False
    gauges = frozenset({"last_infer_us"})

    def __init__(self, file: TextIO, labels: Sequence[str]) -> None:
        self._file = file
        self._labels = labels
        self._counts = {"lines": 0, "events": 0, "last_infer_us": 0}
        self._emit: Callable[[Mapping[str, Any]], None] = lambda event: None

    def connect(self, emit: Callable[[Mapping[str, Any]], None]) -> None:
        self._emit = emit

    def report(self) -> Mapping[str, int]:
        return dict(self._counts)

    def write_timing(self, message: Published, times: StageTimes) -> None:
        self._counts["last_infer_us"] = times.infer_ns // 1000

    def write_event(self, event: Mapping[str, Any]) -> None:
        self._counts["events"] += 1

    def write(self, message: Published, frame: Frame | None) -> None:
        seen = message.detections
        counts = Counter(self._labels[index] for index in seen.class_ids.tolist())
        listed = " ".join(f"{label}={count}" for label, count in sorted(counts.items()))
        self._file.write(f"{seen.camera} {seen.seq} boxes={len(seen)} {listed}".rstrip() + "\n")
        self._counts["lines"] += 1
        if self._counts["lines"] == 1:
            self._emit({"kind": "tally_begun", "t_ns": seen.t_capture_ns, "camera": seen.camera})

    def close(self) -> None:
        self._file.close()


class TallySinkType:
    """Opens ``tally:FILE``."""

    schemes = ("tally",)

    def check(self, uri: str) -> None:
        if not uri.removeprefix("tally:") or "?" in uri:
            raise RequestError("a tally needs a file, without parameters", seen=uri, fix="tally:boxes.txt")

    def open(self, uri: str, *, labels: Sequence[str]) -> Sink:
        path = Path(uri.removeprefix("tally:"))
        try:
            return TallySink(path.open("w", encoding="utf-8"), labels)
        except OSError as error:
            raise DataError(f"{path} cannot be written", seen=str(error), fix="choose another file") from None
