"""Summarise the content of a log, and verify that all of it can be read."""

from __future__ import annotations

import os
import struct
import zlib
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import TypedDict

from avq.errors import DataError
from avq.logs.reading import open_log
from avq.progress import Reporter
from avq.recording import LogReader, Record
from avq.recording.images import decode_image, is_image

#: Opcode, length, three numbers, and the magic at the end of the file.
_FOOTER_BYTES = 1 + 8 + 20 + 8

#: (topic, schema name, message encoding).
TopicKey = tuple[str, str, str]


class TopicRow(TypedDict):
    """One topic of an answer; ``hz`` is None for a single message."""

    topic: str
    schema: str
    encoding: str
    messages: int
    hz: float | None


class TimeSpan(TypedDict):
    """First and last log time, Unix nanoseconds; None for a log without messages."""

    start_ns: int | None
    end_ns: int | None
    seconds: float


class LogInfo(TimeSpan):
    """Keys of ``avq log info --json``."""

    file: str
    kind: str
    profile: str
    whole: bool
    damage: str
    messages: int
    topics: list[TopicRow]
    metadata: dict[str, dict[str, str]]
    attachments: list[str]


class LogVerification(TimeSpan):
    """Keys of ``avq log verify --json``."""

    file: str
    kind: str
    whole: bool
    messages: int
    pictures: int
    findings: list[str]
    notes: list[str]
    topics: list[TopicRow]


class TopicStatistics:
    """Count messages by topic and the time they span."""

    def __init__(self) -> None:
        self.counts: Counter[TopicKey] = Counter()
        self.spans: dict[TopicKey, tuple[int, int]] = {}

    def add(self, record: Record) -> None:
        key = (record.topic, record.schema_name, record.message_encoding)
        low, high = self.spans.get(key, (record.log_time_ns, record.log_time_ns))
        self.counts[key] += 1
        self.spans[key] = (min(low, record.log_time_ns), max(high, record.log_time_ns))

    def topics(self) -> list[TopicRow]:
        rows: list[TopicRow] = []
        for key in sorted(self.counts):
            low, high = self.spans[key]
            count = self.counts[key]
            hz = round((count - 1) / (high - low) * 1e9, 3) if high > low else None
            rows.append({"topic": key[0], "schema": key[1], "encoding": key[2], "messages": count, "hz": hz})
        return rows

    def span(self) -> TimeSpan:
        if not self.spans:
            return {"start_ns": None, "end_ns": None, "seconds": 0.0}
        start_ns, end_ns = min(low for low, _ in self.spans.values()), max(h for _, h in self.spans.values())
        return {"start_ns": start_ns, "end_ns": end_ns, "seconds": round((end_ns - start_ns) / 1e9, 6)}


def info(path: Path, report: Reporter) -> LogInfo:
    """Read a whole log and return its topics, rates, time span and damage.

    Raises:
        DataError: the path is not a log.
    """
    statistics = TopicStatistics()
    with closing(open_log(path)) as log:
        for record in report.track(log, "messages", 0):
            statistics.add(record)
        return {
            "file": str(path),
            "kind": log.kind,
            "profile": log.profile,
            "whole": not log.damage,
            "damage": log.damage,
            "messages": log.messages,
            **statistics.span(),
            "topics": statistics.topics(),
            "metadata": log.metadata,
            "attachments": [item.name for item in log.attachments],
        }


def verify(path: Path, report: Reporter) -> LogVerification:
    """Read a log with every check: CRCs, index against content, images, gaps in sequence numbers.

    Returns:
        ``whole`` is the result, ``findings`` list the errors, ``notes`` are informative only.

    Raises:
        DataError: the path is not a log.
    """
    statistics, images = TopicStatistics(), _ImageCheck()
    with closing(open_log(path, check_data=True)) as log:
        for record in report.track(log, "messages", 0):
            statistics.add(record)
            images.add(record)
        findings = [log.damage] if log.damage else []
        if log.kind == "mcap":
            findings += _index_findings(path, statistics, damaged=bool(log.damage))
        if not log.messages:
            findings.append("no complete message can be read")
        findings += images.findings()
        return {
            "file": str(path),
            "kind": log.kind,
            "whole": not findings,
            "messages": log.messages,
            "pictures": images.count,
            "findings": findings,
            "notes": images.notes(),
            **statistics.span(),
            "topics": statistics.topics(),
        }


def _index_findings(path: Path, statistics: TopicStatistics, *, damaged: bool) -> list[str]:
    try:
        with LogReader(path) as reader:
            indexed = reader.indexed_channels()
    except DataError:
        return []
    if damaged:
        return []
    if indexed is None or not _summary_is_whole(path):
        return ["the index is missing or damaged: readers that need it cannot open the log"]
    by_topic: Counter[TopicKey] = Counter()
    for topic, schema, encoding, messages in indexed:
        by_topic[(topic, schema, encoding)] += messages
    counted = Counter({key: n for key, n in statistics.counts.items() if key[1]})
    if +by_topic != counted:
        return [f"the index lists {sum(by_topic.values())} messages, the log holds {sum(counted.values())}"]
    return []


def _summary_is_whole(path: Path) -> bool:
    """Verify the CRC in the footer over index and footer; 0 means that the writer left none."""
    with path.open("rb") as file:
        footer_at = file.seek(-_FOOTER_BYTES, os.SEEK_END)
        start, _, crc = struct.unpack("<QQI", file.read(_FOOTER_BYTES)[9:29])
        if crc == 0:
            return True
        file.seek(start)
        return zlib.crc32(file.read(footer_at + 25 - start)) == int(crc)


class _ImageCheck:
    """Decode every image, and check the sequence numbers of each image topic."""

    def __init__(self) -> None:
        self.count = 0
        self._unreadable: list[str] = []
        self._last: dict[str, int] = {}
        self._gaps: Counter[str] = Counter()
        self._back: Counter[str] = Counter()

    def add(self, record: Record) -> None:
        if not is_image(record):
            return
        self.count += 1
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
        return [f"{len(self._unreadable)} of {self.count} images cannot be decoded: {self._unreadable[0]}"]

    def notes(self) -> list[str]:
        gaps = [f"{topic}: {n} sequence numbers are missing" for topic, n in _nonzero(self._gaps)]
        return gaps + [f"{topic}: {n} messages are out of order" for topic, n in _nonzero(self._back)]


def _nonzero(counts: Counter[str]) -> Iterable[tuple[str, int]]:
    return ((topic, n) for topic, n in sorted(counts.items()) if n)
