"""An MCAP file that can be read after a crash.

It is written under its final name, not aside: a record that appears only after a clean stop is no flight record.
Chunks are small and leave the process as soon as they are full, and reach the disk at least once a second, so a
killed process loses its last chunk and a power cut its last second.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from mcap.writer import Writer

from avq.errors import DataError

CHUNK_BYTES = 64 * 1024
SYNC_EVERY_NS = 1_000_000_000


class LogWriter:
    """Channels of JSON messages (schema encoding ``jsonschema``).

    Args:
        path: the log; an existing one is replaced.
        metadata: written as the metadata record ``avq``.

    Raises:
        DataError: the file cannot be created.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        try:
            path.unlink(missing_ok=True)
            self._file = path.open("wb")
        except OSError as error:
            raise DataError(
                f"{path} cannot be written", seen=str(error), fix="choose another place for the log"
            ) from None
        self._encode = msgspec.json.Encoder().encode
        self._channels: dict[str, int] = {}
        self._synced_ns = time.monotonic_ns()
        self._writer = Writer(self._file, chunk_size=CHUNK_BYTES)
        self._writer.start(profile="", library="avq")
        self._writer.add_metadata("avq", dict(metadata))
        self._file.flush()

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
        """Append one message; ``bytes`` values become base64 text. Times are Unix nanoseconds."""
        channel = self._channels.get(topic)
        if channel is None:
            channel = self._channels[topic] = self._register(topic, schema)
        self._writer.add_message(
            channel_id=channel,
            log_time=log_time_ns,
            publish_time=publish_time_ns,
            sequence=sequence & 0xFFFFFFFF,
            data=self._encode(message),
        )

    def _register(self, topic: str, schema: Mapping[str, Any]) -> int:
        schema_id = self._writer.register_schema(
            name=schema["title"], encoding="jsonschema", data=self._encode(schema)
        )
        return int(self._writer.register_channel(topic, "json", schema_id))

    def flush(self) -> None:
        """Hand full chunks to the kernel, and once a second to the disk."""
        self._file.flush()
        now_ns = time.monotonic_ns()
        if now_ns - self._synced_ns >= SYNC_EVERY_NS:
            os.fdatasync(self._file.fileno())
            self._synced_ns = now_ns

    def close(self) -> None:
        """Write the index and close; safe to call twice."""
        if not self._file.closed:
            self._writer.finish()
            self._file.flush()
            os.fdatasync(self._file.fileno())
            self._file.close()
