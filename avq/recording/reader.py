"""Read any MCAP file in file order, also a truncated or damaged one, and report what could not be read."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mcap.exceptions import EndOfFile, McapError
from mcap.reader import make_reader
from mcap.records import Attachment, Channel, Chunk, Header, Message, Metadata, Schema
from mcap.stream_reader import StreamReader

from avq.errors import DataError
from avq.recording.chunks import chunk_records

#: Exceptions that reading damaged records may raise.
BROKEN = (McapError, ValueError, LookupError, OSError, MemoryError, OverflowError, struct.error)

_Definitions = Iterator["Schema | Channel"]


class ChannelIndex:
    """Schemas and channels by id, as read so far. For a missing id it searches the summary, then all whole chunks.

    Writers repeat the definitions, so a damaged chunk does not lose the messages of later ones.

    Args:
        path: of the log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._schemas: dict[int, Schema] = {}
        self._channels: dict[int, Channel] = {}
        self._fallbacks: list[Callable[[Path], _Definitions]] = [_in_summary, _in_whole_chunks]

    def add(self, record: Schema | Channel) -> None:
        """Add a definition that was read; a later one of the same id replaces it."""
        if isinstance(record, Schema):
            self._schemas[record.id] = record
        else:
            self._channels[record.id] = record

    def channel(self, number: int) -> Channel | None:
        """Return the channel with that id; None where no readable part of the file defines it."""
        while number not in self._channels and self._fallbacks:
            self._search(self._fallbacks.pop(0))
        return self._channels.get(number)

    def schema(self, channel: Channel) -> Schema | None:
        """Return the schema of a channel; None for a channel without one (id 0), and where it is not defined."""
        number = channel.schema_id
        while number and number not in self._schemas and self._fallbacks:
            self._search(self._fallbacks.pop(0))
        return self._schemas.get(number)

    def _search(self, definitions: Callable[[Path], _Definitions]) -> None:
        with suppress(*BROKEN):  # definitions before the damage are kept
            for record in definitions(self._path):
                known = self._schemas if isinstance(record, Schema) else self._channels
                if record.id not in known:
                    self.add(record)


def _in_summary(path: Path) -> _Definitions:
    with path.open("rb") as file:
        summary = make_reader(file).get_summary()
        if summary is not None:
            yield from summary.schemas.values()
            yield from summary.channels.values()


def _in_whole_chunks(path: Path) -> _Definitions:
    with path.open("rb") as file:
        limit = path.stat().st_size
        for record in StreamReader(file, emit_chunks=True, record_size_limit=limit).records:
            if isinstance(record, Chunk):
                yield from _in_chunk(record)
            elif isinstance(record, Schema | Channel):
                yield record


def _in_chunk(chunk: Chunk) -> _Definitions:
    try:
        records = chunk_records(chunk)
    except Exception:  # decompressors raise their own types
        return
    yield from (record for record in records if isinstance(record, Schema | Channel))


@dataclass(frozen=True, slots=True)
class Record:
    """One message with all that is needed to decode it or to write it again. Times are the file's nanoseconds."""

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

    Args:
        path: an MCAP file.
        check_data: also verify the CRC over the data section, where the writer left one.

    Attributes:
        messages: number of messages read so far.
        damage: describes what could not be read; "" if everything could. Complete after the iteration.
        profile, metadata, attachments: other records of the file, complete after the iteration.

    Raises:
        DataError: the file cannot be opened or is not MCAP.
    """

    def __init__(self, path: Path, *, check_data: bool = False) -> None:
        self.path = path
        self.messages = 0
        self.damage = ""
        self.profile = ""
        self.metadata: dict[str, dict[str, str]] = {}
        self.attachments: list[Attachment] = []
        self._check_data = check_data
        self._damages: dict[str, str] = {}
        self._index = ChannelIndex(path)
        self._undefined: set[int] = set()
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
            self._note_damage(
                "end", "the file is truncated: its writer was killed, or the copy is incomplete"
            )
        except BROKEN as error:
            self._note_damage("end", f"damaged record: {error!r}")

    def indexed_channels(self) -> list[tuple[str, str, str, int]] | None:
        """Return (topic, schema name, message encoding, message count) of the index; None without a whole index."""
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
            self._index.add(record)
        elif isinstance(record, Metadata):
            self.metadata[record.name] = dict(record.metadata)
        elif isinstance(record, Attachment):
            self.attachments.append(record)
        elif isinstance(record, Header):
            self.profile = record.profile
        elif isinstance(record, Message):
            yield from self._record(record)

    def _chunk(self, chunk: Chunk) -> list[object]:
        """Return the records of one chunk; none of a damaged one, since the next can still be read."""
        try:
            return list(chunk_records(chunk))
        except Exception as error:  # decompressors raise their own types
            self._note_damage("chunk", self._damages.get("chunk", f"damaged chunk skipped: {error!r}"))
            return []

    def _record(self, message: Message) -> Iterator[Record]:
        """Yield the message; nothing where no readable part of the file defines its channel."""
        channel = self._index.channel(message.channel_id)
        if channel is None:
            self._undefined.add(message.channel_id)
            ids = ", ".join(map(str, sorted(self._undefined)))
            self._note_damage("channel", f"messages skipped of channels without a definition: {ids}")
            return
        schema = self._index.schema(channel)
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

    def _note_damage(self, kind: str, damage: str) -> None:
        self._damages[kind] = damage
        self.damage = "; ".join(self._damages.values())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> LogReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
