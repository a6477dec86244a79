"""rosbag2 folders, also those whose recorder was killed before it wrote metadata.yaml.

The storage files themselves say everything a conversion needs, so metadata.yaml is not read: .mcap files by the MCAP
reader, .db3 files as SQLite tables in the order of recording.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from mcap.records import Attachment

from avq.errors import DataError
from avq.recording import LogReader, Record

_LEFT_BEHIND = ("-journal", "-wal", "-shm")


def storage_files(folder: Path) -> list[Path]:
    """The .mcap or .db3 files of a recording, in its order: drive_2 before drive_10.

    Raises:
        DataError: the files are compressed as a whole.
    """
    entries = [entry for entry in folder.iterdir() if entry.is_file()]
    packed = [entry.name for entry in entries if entry.name.endswith((".mcap.zstd", ".db3.zstd"))]
    if packed:
        raise DataError(
            f"{folder} holds compressed files", seen=", ".join(packed[:4]), fix="unpack them: zstd -d FILE"
        )
    return sorted((entry for entry in entries if entry.suffix in (".mcap", ".db3")), key=_natural)


def _natural(path: Path) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name))


class Rosbag2:
    """A rosbag2 folder as one log."""

    kind = "rosbag2"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages = 0
        self.damage = ""
        self.profile = "ros2"
        self.metadata: dict[str, dict[str, str]] = {}
        self._attachments: list[Attachment] = []

    @property
    def attachments(self) -> Sequence[Attachment]:
        return self._attachments

    def __iter__(self) -> Iterator[Record]:
        for file in storage_files(self.path):
            for record in self._mcap(file) if file.suffix == ".mcap" else self._sqlite(file):
                self.messages += 1
                yield record

    def _mcap(self, file: Path) -> Iterator[Record]:
        try:
            log = LogReader(file)
        except DataError as error:
            self._damaged(file, str(error.seen))
            return
        with log:
            yield from log
        self.metadata.update(log.metadata)
        self._attachments += log.attachments
        if log.damage:
            self._damaged(file, log.damage)

    def _sqlite(self, file: Path) -> Iterator[Record]:
        with tempfile.TemporaryDirectory() as aside:
            try:
                with closing(_connect(file, Path(aside))) as database:
                    yield from self._rows(file, database)
            except (sqlite3.Error, ValueError, OverflowError) as error:
                self._damaged(file, str(error))

    def _rows(self, file: Path, database: sqlite3.Connection) -> Iterator[Record]:
        topics = _topics(database)
        rows = database.execute("SELECT topic_id, timestamp, data FROM messages ORDER BY id")
        for topic_id, timestamp_ns, data in rows:
            topic = topics.get(topic_id)
            if topic is None or not isinstance(data, bytes) or not isinstance(timestamp_ns, int):
                self._damaged(file, f"a row of topic {topic_id} is not a message")
                continue
            if not 0 <= timestamp_ns < 2**64:
                self._damaged(file, f"a time of {timestamp_ns} ns")
                continue
            yield Record(
                topic.name,
                topic.schema,
                topic.encoding,
                data,
                timestamp_ns,
                timestamp_ns,
                0,
                "ros2msg" if topic.definition else "",
                topic.definition,
                {"offered_qos_profiles": topic.qos} if topic.qos else {},
            )

    def _damaged(self, file: Path, why: str) -> None:
        self.damage = self.damage or f"{file.name}: {why}"

    def close(self) -> None:
        """Nothing stays open between iterations."""


def _connect(file: Path, aside: Path) -> sqlite3.Connection:
    """Read-only; what a killed recorder left to be rolled back is rolled back in a copy."""
    if any(file.with_name(file.name + suffix).exists() for suffix in _LEFT_BEHIND):
        for suffix in ("", *_LEFT_BEHIND):
            part = file.with_name(file.name + suffix)
            if part.exists():
                shutil.copy(part, aside / part.name)
        return sqlite3.connect(aside / file.name)
    return sqlite3.connect(f"file:{quote(str(file.resolve()))}?mode=ro&immutable=1", uri=True)


@dataclass(frozen=True, slots=True)
class _Topic:
    name: str
    schema: str
    encoding: str
    qos: str
    definition: bytes


def _topics(database: sqlite3.Connection) -> dict[int, _Topic]:
    """Raises sqlite3.Error where the tables are not those of rosbag2."""
    columns = {row[1] for row in database.execute("PRAGMA table_info(topics)")}
    qos = "offered_qos_profiles" if "offered_qos_profiles" in columns else "''"
    definitions = _definitions(database)
    rows = database.execute(f"SELECT id, name, type, serialization_format, {qos} FROM topics").fetchall()
    return {
        int(number): _Topic(str(name), str(kind), str(encoding), str(profile), definitions.get(kind, b""))
        for number, name, kind, encoding, profile in rows
    }


def _definitions(database: sqlite3.Connection) -> dict[str, bytes]:
    """Message definitions by type; recorders before ROS 2 Iron wrote none."""
    try:
        rows = database.execute(
            "SELECT topic_type, encoded_message_definition FROM message_definitions"
        ).fetchall()
    except sqlite3.OperationalError:
        return {}
    return {str(kind): str(text).encode() for kind, text in rows if text}
