"""Read any MCAP file in file order, also one that was cut off or damaged, and say what was recovered."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mcap.exceptions import EndOfFile, McapError
from mcap.reader import make_reader
from mcap.records import Attachment, Channel, Chunk, Header, Message, Metadata, Schema
from mcap.stream_reader import StreamReader, breakup_chunk

from avq.errors import DataError

# What a log says of its channels; where the part that said it is damaged, what the rest of the file
# repeats.

#: What reading damaged records may raise.
BROKEN = (McapError, ValueError, LookupError, OSError, MemoryError, OverflowError, struct.error)

_Described = Iterator["Schema | Channel"]


class Descriptions:
    """Schemas and channels by number, as met so far; asked for another one, it looks through the file.

    Args:
        path: of the log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._schemas: dict[int, Schema] = {}
        self._channels: dict[int, Channel] = {}
        self._elsewhere: list[Callable[[Path], _Described]] = [_in_summary, _in_whole_chunks]

    def met(self, record: Schema | Channel) -> None:
        """A description, in its place in the file."""
        if isinstance(record, Schema):
            self._schemas[record.id] = record
        else:
            self._channels[record.id] = record

    def channel(self, number: int) -> Channel | None:
        """None where nothing that is left of the file describes it."""
        while number not in self._channels and self._elsewhere:
            self._look(self._elsewhere.pop(0))
        return self._channels.get(number)

    def schema(self, channel: Channel) -> Schema | None:
        """None for a channel without a schema (number 0), and where nothing describes it."""
        number = channel.schema_id
        while number and number not in self._schemas and self._elsewhere:
            self._look(self._elsewhere.pop(0))
        return self._schemas.get(number)

    def _look(self, place: Callable[[Path], _Described]) -> None:
        with suppress(*BROKEN):  # what was found before the damage counts
            for record in place(self._path):
                known = self._schemas if isinstance(record, Schema) else self._channels
                if record.id not in known:
                    self.met(record)


def _in_summary(path: Path) -> _Described:
    with path.open("rb") as file:
        summary = make_reader(file).get_summary()
        if summary is not None:
            yield from summary.schemas.values()
            yield from summary.channels.values()


def _in_whole_chunks(path: Path) -> _Described:
    with path.open("rb") as file:
        limit = path.stat().st_size
        for record in StreamReader(file, emit_chunks=True, record_size_limit=limit).records:
            if isinstance(record, Chunk):
                yield from _of_chunk(record)
            elif isinstance(record, Schema | Channel):
                yield record


def _of_chunk(chunk: Chunk) -> _Described:
    try:
        records = breakup_chunk(chunk, validate_crc=True)
    except Exception:  # decompressors raise their own types
        return
    yield from (record for record in records if isinstance(record, Schema | Channel))


@dataclass(frozen=True, slots=True)
class Record:
    """One message with what is needed to decode it, or to write it again. Times are the file's own nanoseconds."""

    topic: str
    schema_name: str
    message_encoding: str
    data: bytes
    log_time_ns: int
    publish_time_ns: int
    sequence: int
    schema_encoding: str = ""
    schema_data: bytes = b""
    channel_metadata: Mapping[str, str] = field(default_factory=dict)


class LogReader:
    """Iterate once over the messages of a log.

    After the iteration: ``messages`` counts what was read, ``damage`` says in words what could not be, or is "";
    ``profile``, ``metadata`` and ``attachments`` hold what else was met.

    Args:
        path: an MCAP file.
        check_data: also check the sum over everything before the index, where the writer left one.

    Raises:
        DataError: the file cannot be opened or is not MCAP at all.
    """

    def __init__(self, path: Path, *, check_data: bool = False) -> None:
        self.path = path
        self.messages = 0
        self.damage = ""
        self.profile = ""
        self.metadata: dict[str, dict[str, str]] = {}
        self.attachments: list[Attachment] = []
        self._check_data = check_data
        self._told: dict[str, str] = {}
        self._described = Descriptions(path)
        self._undescribed: set[int] = set()
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise DataError(f"{path} cannot be read", seen=str(error), fix="check the path") from None
        magic = self._file.read(8)
        if magic != b"\x89MCAP0\r\n":
            self._file.close()
            raise DataError(
                f"{path} is not an MCAP file", seen=repr(magic), fix="record with --log NAME.mcap"
            )
        self._file.seek(0)

    def __iter__(self) -> Iterator[Record]:
        stream = StreamReader(
            self._file,
            emit_chunks=True,
            validate_crcs=self._check_data,
            record_size_limit=self.path.stat().st_size,
        )
        try:
            for record in stream.records:
                yield from self._messages(record)
        except EndOfFile:
            self._tell("end", "the file is cut off: its writer was killed, or it was not copied whole")
        except BROKEN as error:
            self._tell("end", f"damaged record: {error!r}")

    def indexed_channels(self) -> list[tuple[str, str, str, int]] | None:
        """(topic, schema name, message encoding, messages) as the index tells; None without a whole index."""
        try:
            summary = make_reader(self._file, validate_crcs=True).get_summary()
            if summary is None or summary.statistics is None:
                return None
            counts = summary.statistics.channel_message_counts
            if not set(counts) <= set(summary.channels):
                return None
            return [
                (
                    channel.topic,
                    summary.schemas[channel.schema_id].name,
                    channel.message_encoding,
                    counts.get(key, 0),
                )
                for key, channel in summary.channels.items()
                if channel.schema_id in summary.schemas
            ]
        except BROKEN:
            return None
        finally:
            self._file.seek(0)

    def _messages(self, record: object) -> Iterator[Record]:
        if isinstance(record, Chunk):
            for inner in self._chunk(record):
                yield from self._messages(inner)
        elif isinstance(record, Schema | Channel):
            self._described.met(record)
        elif isinstance(record, Metadata):
            self.metadata[record.name] = dict(record.metadata)
        elif isinstance(record, Attachment):
            self.attachments.append(record)
        elif isinstance(record, Header):
            self.profile = record.profile
        elif isinstance(record, Message):
            yield from self._record(record)

    def _chunk(self, chunk: Chunk) -> list[object]:
        """The records of one chunk; a damaged chunk is skipped, the next one can still be read."""
        try:
            return list(breakup_chunk(chunk, validate_crc=True))
        except Exception as error:  # decompressors raise their own types
            self._tell("chunk", self._told.get("chunk", f"damaged chunk skipped: {error!r}"))
            return []

    def _record(self, message: Message) -> Iterator[Record]:
        """The message; nothing where no part of the file that is left says what its channel is."""
        channel = self._described.channel(message.channel_id)
        if channel is None:
            self._undescribed.add(message.channel_id)
            numbers = ", ".join(map(str, sorted(self._undescribed)))
            self._tell("channel", f"messages skipped of channels that nothing describes: {numbers}")
            return
        schema = self._described.schema(channel)
        self.messages += 1
        yield Record(
            channel.topic,
            schema.name if schema else "",
            channel.message_encoding,
            message.data,
            message.log_time,
            message.publish_time,
            message.sequence,
            schema.encoding if schema else "",
            schema.data if schema else b"",
            channel.metadata,
        )

    def _tell(self, kind: str, what: str) -> None:
        self._told[kind] = what
        self.damage = "; ".join(self._told.values())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> LogReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
