"""Write an MCAP file that can be read after a crash.

It is written under its final name: a record that appears only after a clean stop is no flight record. Chunks are
small and leave the process whole: full ones with ``commit``, partial ones after ``end_chunk``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from mcap.data_stream import RecordBuilder
from mcap.records import Channel, Schema
from mcap.writer import Writer

from avq.atomic_file import PRIVATE_MODE, refuse_special
from avq.errors import DataError


class TransactionalFile:
    """A binary stream for ``mcap.writer.Writer``: ``write`` collects bytes, ``commit`` writes all of them or none.

    After a failed ``commit`` the file ends where it ended before, and the bytes are kept for another attempt.

    Args:
        path: the file to create.
        temporary: the file exists: it is a temporary one of ``atomic_replace``.

    Raises:
        FileExistsError: ``path`` exists and is not temporary.
        OSError: it cannot be created, or is a FIFO, socket or device.
    """

    def __init__(self, path: Path, *, temporary: bool = False) -> None:
        refuse_special(path)
        how = os.O_TRUNC if temporary else os.O_CREAT | os.O_EXCL
        self._fd = os.open(path, os.O_WRONLY | how | os.O_CLOEXEC, PRIVATE_MODE)
        self._pending = bytearray()
        self._committed = 0
        self.closed = False

    def write(self, data: bytes | bytearray) -> int:
        self._pending += data
        return len(data)

    def tell(self) -> int:
        return self._committed + len(self._pending)

    def flush(self) -> None:
        """Do nothing: ``commit`` decides when bytes leave the process."""

    @property
    def pending(self) -> int:
        """Bytes not yet committed."""
        return len(self._pending)

    def commit(self) -> None:
        """Write all collected bytes, or none. Raises OSError (such as a full disk); nothing is lost then."""
        view = memoryview(self._pending)
        done = 0
        try:
            while done < len(view):
                done += os.write(self._fd, view[done:])
        except OSError:
            os.ftruncate(self._fd, self._committed)
            os.lseek(self._fd, self._committed, os.SEEK_SET)
            raise
        finally:
            view.release()
        self._committed += done
        self._pending.clear()

    def sync_function(self) -> Callable[[], None]:
        """Return a function that waits until the disk has the file; call it once, on any thread."""
        descriptor = os.dup(self._fd)

        def wait() -> None:
            try:
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)

        return wait

    def close(self) -> None:
        """Close the file; bytes that are not committed are dropped."""
        if not self.closed:
            self.closed = True
            os.close(self._fd)


CHUNK_BYTES = 64 * 1024
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Entry:
    """One message ready to be logged. Times are Unix nanoseconds; ``schema`` is a JSON schema with a title."""

    topic: str
    schema: Mapping[str, Any]
    data: bytes
    log_time_ns: int
    publish_time_ns: int
    sequence: int = 0


def json_entry(
    topic: str,
    schema: Mapping[str, Any],
    message: Mapping[str, Any],
    *,
    log_time_ns: int,
    publish_time_ns: int,
    sequence: int = 0,
) -> Entry:
    """Encode ``message`` as JSON; ``bytes`` values become base64 text."""
    return Entry(topic, schema, _encode(message), log_time_ns, publish_time_ns, sequence & 0xFFFFFFFF)


class LogWriter:
    """Write channels of JSON messages (schema encoding ``jsonschema``).

    Args:
        path: the log to create.
        metadata: written as the metadata record ``avq``.
        temporary: ``path`` is a temporary file of ``atomic_replace``.

    Raises:
        DataError: the file exists, or cannot be created.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str], *, temporary: bool = False) -> None:
        self.path = path
        try:
            self._file = TransactionalFile(path, temporary=temporary)
        except OSError as error:
            raise _unwritable(path, error) from error
        self._channels: dict[str, int] = {}
        self._ended = False
        self._writer = Writer(self._file, chunk_size=CHUNK_BYTES)  # type: ignore[arg-type,unused-ignore]
        self._writer.start(profile="", library="avq")
        self._writer.add_metadata("avq", dict(metadata))
        try:
            self._file.commit()
        except OSError as error:
            self._file.close()
            path.unlink(missing_ok=True)
            raise _unwritable(path, error) from error

    @property
    def size(self) -> int:
        """Bytes written so far, without the current chunk."""
        return self._file.tell()

    @property
    def pending(self) -> int:
        """Bytes that have not left the process, without the current chunk."""
        return self._file.pending

    def write(
        self,
        topic: str,
        schema: Mapping[str, Any],
        message: Mapping[str, Any],
        *,
        log_time_ns: int,
        publish_time_ns: int,
        sequence: int = 0,
    ) -> None:
        """Append one message and write full chunks."""
        self.add(
            json_entry(
                topic,
                schema,
                message,
                log_time_ns=log_time_ns,
                publish_time_ns=publish_time_ns,
                sequence=sequence,
            )
        )
        self.commit()

    def add(self, entry: Entry) -> None:
        """Append one message; full chunks wait for ``commit``."""
        channel = self._channels.get(entry.topic)
        if channel is None:
            channel = self._channels[entry.topic] = self._register(entry.topic, entry.schema)
        self._writer.add_message(
            channel_id=channel,
            log_time=entry.log_time_ns,
            publish_time=entry.publish_time_ns,
            sequence=entry.sequence,
            data=entry.data,
        )

    def commit(self) -> None:
        """Write full chunks. Raises OSError when the disk is full; nothing is lost then."""
        if self._file.pending:
            self._file.commit()

    def end_chunk(self) -> None:
        """End the current chunk, so that ``commit`` writes all added messages."""
        self._writer.flush()

    def end_file(self) -> None:
        """End the file with its index, which ``commit`` writes; nothing can be added afterwards."""
        if not self._ended:
            self._ended = True
            self._writer.finish()

    def sync_function(self) -> Callable[[], None]:
        """Return a function that waits until the disk has all committed bytes; it may outlive this writer."""
        return self._file.sync_function()

    def _register(self, topic: str, schema: Mapping[str, Any]) -> int:
        """Define a channel in the current chunk and outside of it: a damaged chunk then loses only itself."""
        title, encoding, text = schema["title"], "jsonschema", _encode(schema)
        schema_id = self._writer.register_schema(title, encoding, text)
        channel_id = int(self._writer.register_channel(topic, "json", schema_id))
        outside = RecordBuilder()
        Schema(schema_id, text, encoding, title).write(outside)
        Channel(channel_id, topic, "json", {}, schema_id).write(outside)
        self._file.write(outside.end())
        return channel_id

    def close(self) -> None:
        """Write the index and close; safe to call twice. Raises OSError when the disk is full."""
        if self._file.closed:
            return
        try:
            self.end_file()
            self._file.commit()
            self._file.sync_function()()
        finally:
            self._file.close()

    def abandon(self) -> None:
        """Close without an index; bytes that are not committed are dropped."""
        self._file.close()


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"the log {path} cannot be written", seen=str(error), fix="choose another path for the log"
    )
