"""What a log says of its channels; where the part that said it is damaged, what the rest of the file repeats."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from mcap.exceptions import McapError
from mcap.reader import make_reader
from mcap.records import Channel, Chunk, Schema
from mcap.stream_reader import StreamReader, breakup_chunk

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
