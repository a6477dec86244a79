"""Write records to an MCAP file: atomically, with all CRCs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from mcap.records import Attachment
from mcap.writer import Writer

from avq.atomic_file import PRIVATE_MODE, atomic_write_path
from avq.errors import RequestError
from avq.recording import Record


def new_output(output: Path, *inputs: Path) -> Path:
    """Return ``output``. Raises RequestError when it would replace an input."""
    for path in inputs:
        if output.resolve() == path.resolve():
            raise RequestError(
                f"the output {output} is also an input", seen=str(path), fix="write to another file with -o"
            )
    return output


class McapOutput:
    """Write an MCAP file; on an error no file is left.

    Args:
        path: the file to write; it is replaced by a complete one only.
        profile: field of the MCAP header, such as "ros2" or "".

    Raises:
        DataError: the file cannot be written.
    """

    def __init__(self, path: Path, profile: str = "") -> None:
        self.path = path
        self.messages = 0
        self._replacing = ExitStack()
        self._file: BinaryIO = self._create()
        self._writer = Writer(self._file, enable_data_crcs=True)
        self._writer.start(profile=profile, library="avq")
        self._schemas: dict[tuple[str, str, bytes], int] = {}
        self._channels: dict[tuple[str, str, int, tuple[tuple[str, str], ...]], int] = {}

    def write(self, record: Record) -> None:
        self._writer.add_message(
            channel_id=self._channel(record),
            log_time=record.log_time_ns,
            publish_time=record.publish_time_ns,
            sequence=record.sequence,
            data=record.data,
        )
        self.messages += 1

    def add_metadata(self, metadata: Mapping[str, Mapping[str, str]]) -> None:
        for name, table in metadata.items():
            self._writer.add_metadata(name, dict(table))

    def add_attachments(self, attachments: Sequence[Attachment]) -> None:
        for item in attachments:
            self._writer.add_attachment(
                item.create_time, item.log_time, item.name, item.media_type, item.data
            )

    def _channel(self, record: Record) -> int:
        schema_id = self._schema(record)
        extra = dict(record.channel_metadata)
        key = (record.topic, record.message_encoding, schema_id, tuple(sorted(extra.items())))
        if key not in self._channels:
            self._channels[key] = self._writer.register_channel(
                record.topic, record.message_encoding, schema_id, extra
            )
        return self._channels[key]

    def _schema(self, record: Record) -> int:
        """Return the id of the record's schema; 0 for a channel without one."""
        if not record.schema_name:
            return 0
        key = (record.schema_name, record.schema_encoding, record.schema_data)
        if key not in self._schemas:
            self._schemas[key] = self._writer.register_schema(*key)
        return self._schemas[key]

    def _create(self) -> BinaryIO:
        temporary = self._replacing.enter_context(atomic_write_path(self.path, PRIVATE_MODE))
        return self._replacing.enter_context(temporary.open("r+b"))

    def __enter__(self) -> McapOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._replacing.__exit__(kind, error, trace)
            return
        with self._replacing:
            self._writer.finish()
