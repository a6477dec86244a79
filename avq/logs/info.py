"""What a log holds, and whether all of it can be read."""

from __future__ import annotations

import os
import struct
import zlib
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from avq.errors import DataError
from avq.logs.reading import open_log
from avq.progress import Reporter
from avq.recording import LogReader, Record
from avq.recording.images import decode_image, is_image

#: opcode, length, three numbers, and the magic at the end of the file
_FOOTER_BYTES = 1 + 8 + 20 + 8

TopicKey = tuple[str, str, str]


class Tally:
    """Messages by topic, and the time they span, counted while records pass by."""

    def __init__(self) -> None:
        self.counts: Counter[TopicKey] = Counter()
        self.spans: dict[TopicKey, tuple[int, int]] = {}

    def see(self, record: Record) -> None:
        key = (record.topic, record.schema_name, record.message_encoding)
        low, high = self.spans.get(key, (record.log_time_ns, record.log_time_ns))
        self.counts[key] += 1
        self.spans[key] = (min(low, record.log_time_ns), max(high, record.log_time_ns))

    def topics(self) -> list[dict[str, Any]]:
        rows = []
        for key in sorted(self.counts):
            low, high = self.spans[key]
            count = self.counts[key]
            hz = round((count - 1) / (high - low) * 1e9, 3) if high > low else None
            rows.append({"topic": key[0], "schema": key[1], "encoding": key[2], "messages": count, "hz": hz})
        return rows

    def span(self) -> dict[str, Any]:
        if not self.spans:
            return {"start_ns": None, "end_ns": None, "seconds": 0.0}
        start_ns, end_ns = min(low for low, _ in self.spans.values()), max(h for _, h in self.spans.values())
        return {"start_ns": start_ns, "end_ns": end_ns, "seconds": round((end_ns - start_ns) / 1e9, 6)}


def info(path: Path, report: Reporter) -> dict[str, Any]:
    """Read a log through: topics, rates, span, and what is damaged ("" when nothing is).

    Raises:
        DataError: it is no log.
    """
    tally = Tally()
    with closing(open_log(path)) as log:
        for record in report.track(log, "messages", 0):
            tally.see(record)
        return {
            "file": str(path),
            "kind": log.kind,
            "profile": log.profile,
            "whole": not log.damage,
            "damage": log.damage,
            "messages": log.messages,
            **tally.span(),
            "topics": tally.topics(),
            "metadata": log.metadata,
            "attachments": [item.name for item in log.attachments],
        }


def verify(path: Path, report: Reporter) -> dict[str, Any]:
    """Read a log with every check there is: sums, index against content, pictures, gaps in the numbers of frames.

    ``whole`` is the answer; ``findings`` say what is wrong, ``notes`` what is only worth knowing.

    Raises:
        DataError: it is no log.
    """
    tally, pictures = Tally(), _Pictures()
    with closing(open_log(path, check_data=True)) as log:
        for record in report.track(log, "messages", 0):
            tally.see(record)
            pictures.see(record)
        findings = [log.damage] if log.damage else []
        if log.kind == "mcap":
            findings += _index_findings(path, tally, damaged=bool(log.damage))
        if not log.messages:
            findings.append("not one whole message can be read")
        findings += pictures.findings()
        return {
            "file": str(path),
            "kind": log.kind,
            "whole": not findings,
            "messages": log.messages,
            "pictures": pictures.seen,
            "findings": findings,
            "notes": pictures.notes(),
            **tally.span(),
            "topics": tally.topics(),
        }


def _index_findings(path: Path, tally: Tally, *, damaged: bool) -> list[str]:
    try:
        with LogReader(path) as reader:
            indexed = reader.indexed_channels()
    except DataError:
        return []
    if damaged:
        return []
    if indexed is None or not _summary_is_whole(path):
        return ["the index is missing or damaged: readers that need it cannot open the log"]
    told: Counter[TopicKey] = Counter()
    for topic, schema, encoding, messages in indexed:
        told[(topic, schema, encoding)] += messages
    counted = Counter({key: n for key, n in tally.counts.items() if key[1]})
    if +told != counted:
        return [f"the index tells of {sum(told.values())} messages, the log holds {sum(counted.values())}"]
    return []


def _summary_is_whole(path: Path) -> bool:
    """MCAP's footer may carry a CRC over the index and itself; 0 means that the writer left none."""
    with path.open("rb") as file:
        footer_at = file.seek(-_FOOTER_BYTES, os.SEEK_END)
        start, _, crc = struct.unpack("<QQI", file.read(_FOOTER_BYTES)[9:29])
        if crc == 0:
            return True
        file.seek(start)
        return zlib.crc32(file.read(footer_at + 25 - start)) == int(crc)


class _Pictures:
    """Decodes every picture, and watches the sequence numbers of each image topic."""

    def __init__(self) -> None:
        self.seen = 0
        self._unreadable: list[str] = []
        self._last: dict[str, int] = {}
        self._gaps: Counter[str] = Counter()
        self._back: Counter[str] = Counter()

    def see(self, record: Record) -> None:
        if not is_image(record):
            return
        self.seen += 1
        try:
            decode_image(record)
        except ValueError as error:
            self._unreadable.append(str(error))
        before = self._last.get(record.topic, record.sequence - 1)
        self._gaps[record.topic] += max(0, record.sequence - before - 1)
        self._back[record.topic] += record.sequence < before
        self._last[record.topic] = record.sequence

    def findings(self) -> list[str]:
        if not self._unreadable:
            return []
        return [f"{len(self._unreadable)} of {self.seen} pictures cannot be decoded: {self._unreadable[0]}"]

    def notes(self) -> list[str]:
        gaps = [f"{topic}: {n} frames are missing between those there" for topic, n in _some(self._gaps)]
        return gaps + [f"{topic}: {n} times out of order" for topic, n in _some(self._back)]


def _some(counts: Counter[str]) -> Iterable[tuple[str, int]]:
    return ((topic, n) for topic, n in sorted(counts.items()) if n)
