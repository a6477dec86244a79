"""An MCAP file that can be read after a crash.

It is written under its final name, not aside: a record that appears only after a clean stop is no flight record.
Chunks are small and leave the process whole: full ones with ``commit``, begun ones after ``end_chunk``.
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

from avq.atomic_file import refuse_special
from avq.errors import DataError

# A file that grows by whole pieces: what cannot be written completely is taken back and kept for
# another try.


class WholeWrites:
    """A binary stream for ``mcap.writer.Writer``: ``write`` collects, ``commit`` hands it all to the kernel.

    Args:
        path: created, or emptied.

    Raises:
        OSError: it cannot be created, or something is there that is no file.
    """

    def __init__(self, path: Path) -> None:
        refuse_special(path)
        path.unlink(missing_ok=True)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._pending = bytearray()
        self._committed = 0
        self.closed = False

    def write(self, data: bytes | bytearray) -> int:
        self._pending += data
        return len(data)

    def tell(self) -> int:
        return self._committed + len(self._pending)

    def flush(self) -> None:
        """Nothing: ``commit`` decides when bytes leave the process."""

    @property
    def pending(self) -> int:
        """Bytes not yet committed."""
        return len(self._pending)

    def commit(self) -> None:
        """Raises OSError (a full disk); then the file ends where it ended before and nothing is lost."""
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

    def synced_later(self) -> Callable[[], None]:
        """A function, to be called once, that waits until the disk has it; safe beside everything else."""
        descriptor = os.dup(self._fd)

        def wait() -> None:
            try:
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)

        return wait

    def close(self) -> None:
        """What is still pending is dropped."""
        if not self.closed:
            self.closed = True
            os.close(self._fd)


CHUNK_BYTES = 64 * 1024
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Entry:
    """One message ready to be logged. Times are Unix nanoseconds; ``schema`` is JSON schema with a title."""

    topic: str
    schema: Mapping[str, Any]
    data: bytes
    log_time_ns: int
    publish_time_ns: int
    sequence: int = 0


def entry(
    topic: str,
    schema: Mapping[str, Any],
    message: Mapping[str, Any],
    *,
    log_time_ns: int,
    publish_time_ns: int,
    sequence: int = 0,
) -> Entry:
    """``message`` as JSON; ``bytes`` values become base64 text."""
    return Entry(topic, schema, _encode(message), log_time_ns, publish_time_ns, sequence & 0xFFFFFFFF)


class LogWriter:
    """Channels of JSON messages (schema encoding ``jsonschema``).

    Args:
        path: the log; an existing one is replaced.
        metadata: written as the metadata record ``avq``.

    Raises:
        DataError: the file cannot be created.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        self.path = path
        try:
            self._file = WholeWrites(path)
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
        """Bytes so far, without the chunk that is being filled."""
        return self._file.tell()

    @property
    def pending(self) -> int:
        """Bytes that have not left the process, without the chunk that is being filled."""
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
        """Append one message and hand full chunks to the kernel."""
        self.add(
            entry(
                topic,
                schema,
                message,
                log_time_ns=log_time_ns,
                publish_time_ns=publish_time_ns,
                sequence=sequence,
            )
        )
        self.commit()

    def add(self, one: Entry) -> None:
        """Append one message; full chunks wait for ``commit``."""
        channel = self._channels.get(one.topic)
        if channel is None:
            channel = self._channels[one.topic] = self._register(one.topic, one.schema)
        self._writer.add_message(
            channel_id=channel,
            log_time=one.log_time_ns,
            publish_time=one.publish_time_ns,
            sequence=one.sequence,
            data=one.data,
        )

    def commit(self) -> None:
        """Hand full chunks to the kernel. Raises OSError, and loses nothing, when the disk is full."""
        if self._file.pending:
            self._file.commit()

    def end_chunk(self) -> None:
        """Whatever was added is in a chunk that ``commit`` hands over."""
        self._writer.flush()

    def end_file(self) -> None:
        """Nothing can be added from here on; the index waits for ``commit``, which may be tried again."""
        if not self._ended:
            self._ended = True
            self._writer.finish()

    def synced_later(self) -> Callable[[], None]:
        """A function that waits until the disk has what the kernel has; it may outlive this writer."""
        return self._file.synced_later()

    def _register(self, topic: str, schema: Mapping[str, Any]) -> int:
        """Described twice: in the chunk that begins, and before it, so that a damaged chunk costs only itself."""
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
            self._file.synced_later()()
        finally:
            self._file.close()

    def abandon(self) -> None:
        """Close without an index and without what has not left the process."""
        self._file.close()


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be written", seen=str(error), fix="choose another place for the log")
