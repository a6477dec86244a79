"""Logs whose damaged part said what the channels are: the rest is read as far as anything else tells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from mcap.data_stream import RecordBuilder
from mcap.reader import make_reader
from mcap.records import Channel, Chunk, Header, Message, Schema
from mcap.stream_reader import StreamReader, breakup_chunk
from mcap.writer import MCAP0_MAGIC, Writer

from avq.recording import LogReader, RecorderSink
from avq.recording.reader import Record
from tests.recording.recording_kit import LABELS, published


@dataclass(frozen=True)
class Place:
    """Where the data of a chunk lie in the file, and how many messages they are."""

    begin: int
    end: int
    messages: int


def recorded(path: Path) -> Path:
    sink = RecorderSink(path, labels=LABELS)
    for seq in range(30):
        sink.write(*published(seq))
    sink.close()
    return path


def foreign(path: Path) -> Path:
    """By the library's own writer: channels are described in the first chunk and in the summary only."""
    with path.open("wb") as file:
        writer = Writer(file, chunk_size=400)
        writer.start()
        channel = writer.register_channel("/x", "json", writer.register_schema("X", "jsonschema", b"{}"))
        for number in range(60):
            writer.add_message(channel, number, b'{"a": 1234567890}', number)
        writer.finish()
    return path


def chunks_of(path: Path) -> list[Place]:
    found = []
    with path.open("rb") as file:
        for record in StreamReader(file, emit_chunks=True).records:
            if isinstance(record, Chunk):
                messages = sum(isinstance(inner, Message) for inner in breakup_chunk(record))
                found.append(Place(file.tell() - len(record.data), file.tell(), messages))
    return found


def damaged(path: Path, *, cut: bool) -> Path:
    """A copy whose first chunk has other bytes in its middle; ``cut``: and that ends within its last chunk."""
    chunks, data = chunks_of(path), bytearray(path.read_bytes())
    middle = (chunks[0].begin + chunks[0].end) // 2
    data[middle : middle + 8] = bytes(byte ^ 0xFF for byte in data[middle : middle + 8])
    copy = path.with_name("damaged.mcap")
    copy.write_bytes(data[: chunks[-1].end - 5] if cut else data)
    return copy


def read(path: Path) -> tuple[list[Record], str]:
    with LogReader(path) as log:
        records = list(log)
    assert log.messages == len(records)
    return records, log.damage


@pytest.mark.parametrize("cut", [False, True])
def test_our_log_loses_no_more_than_its_damaged_first_chunk(tmp_path: Path, cut: bool) -> None:
    path = recorded(tmp_path / "run.mcap")
    whole, told = read(path)
    chunks = chunks_of(path)
    assert told == "" and len(chunks) >= 4
    left, told = read(damaged(path, cut=cut))
    assert left == whole[chunks[0].messages : len(whole) - cut * chunks[-1].messages]
    assert "damaged chunk skipped" in told and ("truncated" in told) == cut


def test_descriptions_before_the_chunks_are_read_by_the_standard_readers(tmp_path: Path) -> None:
    path = recorded(tmp_path / "run.mcap")
    whole, _ = read(path)
    with path.open("rb") as file:
        rows = sorted((channel.topic, message.sequence, message.data) for _, channel, message in
                      make_reader(file, validate_crcs=True).iter_messages())  # fmt: skip
        file.seek(0)
        streamed = [
            record for record in StreamReader(file, validate_crcs=True).records if isinstance(record, Message)
        ]
    assert rows == sorted((record.topic, record.sequence, record.data) for record in whole)
    assert [message.data for message in streamed] == [record.data for record in whole]


def test_a_log_of_others_is_read_with_the_descriptions_of_its_summary(tmp_path: Path) -> None:
    path = foreign(tmp_path / "x.mcap")
    whole, _ = read(path)
    left, told = read(damaged(path, cut=False))
    assert left == whole[chunks_of(path)[0].messages :] and told.startswith("damaged chunk skipped")
    assert {(record.topic, record.schema_name, record.schema_data) for record in left} == {("/x", "X", b"{}")}


def test_what_nothing_describes_is_skipped_and_told(tmp_path: Path) -> None:
    left, told = read(damaged(foreign(tmp_path / "x.mcap"), cut=True))
    assert left == [] and "channels without a definition: 1" in told and "truncated" in told


def with_a_broken_first_chunk(path: Path, *chunks: Iterable[Schema | Channel | Message]) -> Path:
    """An uncompressed log without summary; the sum of its first chunk is wrong."""
    builder = RecordBuilder()
    Header("", "test").write(builder)
    for number, records in enumerate(chunks):
        inside = RecordBuilder()
        for record in records:
            record.write(inside)
        data = inside.end()
        crc = 0 if number else 1  # 0: not told
        Chunk("", data, 0, 0, crc, len(data)).write(builder)
    path.write_bytes(MCAP0_MAGIC + builder.end())
    return path


def message(channel: int, sequence: int) -> Message:
    return Message(channel, 0, b"{}", 0, sequence)


def test_channels_that_a_later_chunk_describes_are_found_there(tmp_path: Path) -> None:
    """Some writers describe channels in every chunk that has messages of them."""
    schema, x, y = (
        Schema(1, b"{}", "jsonschema", "X"),
        Channel(7, "/x", "json", {}, 1),
        Channel(8, "/y", "json", {}, 0),
    )
    path = with_a_broken_first_chunk(
        tmp_path / "x.mcap",
        [schema, x, y, message(7, 0)],
        [message(8, 1), message(7, 2), message(9, 3)],
        [schema, x, y, message(7, 4)],
    )
    left, told = read(path)
    assert [(record.topic, record.schema_name, record.sequence) for record in left] == [
        ("/y", "", 1),
        ("/x", "X", 2),
        ("/x", "X", 4),
    ]
    assert "without a definition: 9" in told
