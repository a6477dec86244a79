"""Open an MCAP file or a rosbag2 folder as one log; name the format of other files."""

from __future__ import annotations

import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from mcap.records import Attachment

from avq.errors import DataError
from avq.recording import LogReader, Record

#: Suffixes of SQLite's side files, which a killed recorder leaves.
_SIDE_FILES = ("-journal", "-wal", "-shm")


def storage_files(folder: Path) -> list[Path]:
    """List the .mcap or .db3 files of a recording in numeric order: drive_2 before drive_10.

    Raises:
        DataError: the files are compressed as a whole.
    """
    entries = [entry for entry in folder.iterdir() if entry.is_file()]
    compressed = [entry.name for entry in entries if entry.name.endswith((".mcap.zstd", ".db3.zstd"))]
    if compressed:
        raise DataError(
            f"{folder} holds compressed files",
            seen=", ".join(compressed[:4]),
            fix="decompress them: zstd -d FILE",
        )
    return sorted((entry for entry in entries if entry.suffix in (".mcap", ".db3")), key=_numeric_order)


def _numeric_order(path: Path) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name))


class Rosbag2:
    """A rosbag2 folder as one log, also if its recorder was killed before it wrote metadata.yaml."""

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
        with tempfile.TemporaryDirectory() as folder:
            try:
                with closing(_connect(file, Path(folder))) as database:
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
                self._damaged(file, f"invalid timestamp {timestamp_ns} ns")
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

    def _damaged(self, file: Path, reason: str) -> None:
        self.damage = self.damage or f"{file.name}: {reason}"

    def close(self) -> None:
        """Do nothing: no file stays open between iterations."""


def _connect(file: Path, folder: Path) -> sqlite3.Connection:
    """Open a database read-only; the open transaction of a killed recorder is rolled back in a copy in ``folder``."""
    if any(file.with_name(file.name + suffix).exists() for suffix in _SIDE_FILES):
        for suffix in ("", *_SIDE_FILES):
            part = file.with_name(file.name + suffix)
            if part.exists():
                shutil.copy(part, folder / part.name)
        return sqlite3.connect(folder / file.name)
    return sqlite3.connect(f"file:{quote(str(file.resolve()))}?mode=ro&immutable=1", uri=True)


@dataclass(frozen=True, slots=True)
class _Topic:
    name: str
    schema: str
    encoding: str
    qos: str
    definition: bytes


def _topics(database: sqlite3.Connection) -> dict[int, _Topic]:
    """Return topic id -> topic. Raises sqlite3.Error where the tables are not those of rosbag2."""
    columns = {row[1] for row in database.execute("PRAGMA table_info(topics)")}
    qos = "offered_qos_profiles" if "offered_qos_profiles" in columns else "''"
    definitions = _definitions(database)
    query = f"SELECT id, name, type, serialization_format, {qos} FROM topics"  # noqa: S608 - one of two constants
    rows = database.execute(query).fetchall()
    return {
        int(number): _Topic(str(name), str(kind), str(encoding), str(profile), definitions.get(kind, b""))
        for number, name, kind, encoding, profile in rows
    }


def _definitions(database: sqlite3.Connection) -> dict[str, bytes]:
    """Return type -> message definition; recorders before ROS 2 Iron wrote none."""
    try:
        rows = database.execute(
            "SELECT topic_type, encoded_message_definition FROM message_definitions"
        ).fetchall()
    except sqlite3.OperationalError:
        return {}
    return {str(kind): str(text).encode() for kind, text in rows if text}


#: First bytes of files often mistaken for logs -> (format, fix).
_FOREIGN: Mapping[bytes, tuple[str, str]] = {
    b"#ROSBAG V": ("a ROS 1 bag", "convert it first: rosbags-convert --src FILE.bag --dst FOLDER"),
    b"SQLite format 3": ("an SQLite file", "name the folder of its rosbag2 recording"),
    b"RRF": ("a Rerun recording", "export it as MCAP first"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "decompress it first: zstd -d FILE"),
    b"PK\x03\x04": ("a zip archive", "extract it first"),
}


class Log(Protocol):
    """A log that is iterated once. After the iteration ``damage`` describes what could not be read, or is ""."""

    path: Path
    damage: str
    messages: int
    profile: str
    metadata: dict[str, dict[str, str]]

    @property
    def kind(self) -> str: ...

    @property
    def attachments(self) -> Sequence[Attachment]: ...

    def __iter__(self) -> Iterator[Record]: ...

    def close(self) -> None: ...


class McapLog(LogReader):
    """An MCAP file."""

    kind = "mcap"


def open_log(path: Path, *, check_data: bool = False) -> Log:
    """Open an MCAP file or a rosbag2 folder.

    Args:
        path: the file or folder.
        check_data: verify every CRC that the writer left, not only those of the chunks.

    Raises:
        DataError: the path does not exist, or has another format.
    """
    if path.is_dir():
        if not storage_files(path):
            raise DataError(
                f"{path} is a folder without a recording",
                seen=", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "an empty folder",
                fix="a rosbag2 folder holds .mcap or .db3 files",
            )
        return Rosbag2(path)
    _refuse_foreign(path)
    return McapLog(path, check_data=check_data)


def _refuse_foreign(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise DataError(f"{path} cannot be read", seen=str(error), fix="check the path") from None
    for magic, (form, fix) in _FOREIGN.items():
        if start.startswith(magic):
            raise DataError(f"{path} is {form}, not an MCAP log", seen=repr(start[:16]), fix=fix)
    if not start:
        raise DataError(
            f"{path} is empty",
            seen="0 bytes",
            fix="use another log: its writer was killed before its first byte",
        )
