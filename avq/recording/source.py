"""A log as a frame source: every image of one topic, in file order."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl

from avq.errors import DataError, RequestError, nearest
from avq.hookspecs import FrameSource
from avq.picture_files import bit_depth_of
from avq.recording.images import IMAGE_KINDS, decode_image, is_image, largest_of
from avq.recording.reader import LogReader, Record
from avq.types import U8


class LogSource:
    """Source type of ``drive.mcap``, or ``drive.mcap?topic=/camera/front/image`` with several image topics."""

    schemes = (".mcap",)

    def open(self, uri: str, *, open_timeout_ms: int, read_timeout_ms: int) -> FrameSource:
        """Open a log. Raises DataError when it holds no images, RequestError when the topic must be named."""
        path, topic = parse_log_uri(uri)
        return _Log(path, choose_topic(path, topic))


def parse_log_uri(uri: str) -> tuple[Path, str | None]:
    """Return path and ``?topic=`` of a log's URI. Raises RequestError on any other parameter."""
    text = uri.removeprefix("file://")
    if Path(text).exists():
        return Path(text), None
    text, _, query = text.partition("?")
    options = dict(parse_qsl(query))
    for key in options:
        if key != "topic":
            raise RequestError(f"unknown parameter '{key}'", seen=uri, fix=nearest(key, ("topic",)))
    return Path(text), options.get("topic")


def image_topics(path: Path) -> dict[str, int]:
    """Return image topic -> number of messages, from the index; a log without a whole index is read through."""
    with LogReader(path) as log:
        channels = log.indexed_channels()
        if channels is not None:
            kinds = {(topic, schema, encoding): count for topic, schema, encoding, count in channels}
            return {topic: n for (topic, *kind), n in kinds.items() if n and tuple(kind) in IMAGE_KINDS}
        return dict(Counter(record.topic for record in log if is_image(record)))


def choose_topic(path: Path, topic: str | None) -> str:
    """Return ``topic`` if the log has it, or its only image topic.

    Raises:
        DataError: the log holds no images.
        RequestError: the topic does not exist, or several do and none is named.
    """
    topics = image_topics(path)
    if not topics:
        kinds = sorted({schema for schema, _ in IMAGE_KINDS})
        raise DataError(
            f"{path} holds no images", seen="no image channel", fix=f"supported schemas: {', '.join(kinds)}"
        )
    if topic is None and len(topics) > 1:
        listed = ", ".join(f"{name} ({count})" for name, count in sorted(topics.items()))
        raise RequestError(
            f"{path} holds {len(topics)} image topics", seen=listed, fix=f"add ?topic={min(topics)}"
        )
    if topic is not None and topic not in topics:
        raise RequestError(f"{path} has no image topic '{topic}'", seen=topic, fix=nearest(topic, topics))
    return topic or next(iter(topics))


#: Pictures of a topic that tell how many bits its 16-bit values have.
_DEPTH_PICTURES = 16
#: Fewer bits are a dark scene, not a camera.
_LEAST_BITS = 10


def topic_bit_depth(path: Path, topic: str) -> int:
    """Return the bits of a topic's 16-bit values, from the largest one of its first pictures; 16 for other topics.

    Cameras store 10, 12 or 14 bits in 16; larger values of later pictures are white.
    """
    with LogReader(path) as log:
        images = (record for record in log if record.topic == topic and is_image(record))
        found = [largest_of(record) for record in itertools.islice(images, _DEPTH_PICTURES)]
    largest = max((value for value in found if value is not None), default=0)
    return max(_LEAST_BITS, bit_depth_of(largest)) if largest else 16


class _Log:
    """Images of a log; ``lost`` counts those that cannot be decoded. Damage is raised after the last image."""

    live = False
    fps = 0.0
    position_ns = None

    def __init__(self, path: Path, topic: str) -> None:
        self.lost: dict[str, int] = {}
        self.remark = ""
        self._reader = LogReader(path)
        self._records = self._images(topic)
        self._bit_depth = topic_bit_depth(path, topic)
        self._count = 0

    def _images(self, topic: str) -> Iterator[Record]:
        return (record for record in self._reader if record.topic == topic and is_image(record))

    def read(self) -> tuple[U8, int] | None:
        for record in self._records:
            self._count += 1
            try:
                return decode_image(record, self._bit_depth), time.monotonic_ns()
            except ValueError as error:
                self.lost["unreadable"] = self.lost.get("unreadable", 0) + 1
                self.remark = self.remark or str(error)
        self._require_whole()
        return None

    def _require_whole(self) -> None:
        if self._reader.damage or self._count == sum(self.lost.values()):
            raise DataError(
                f"the log {self._reader.path} is damaged: {self._count} images were read, "
                f"{sum(self.lost.values())} of them cannot be decoded",
                seen=self._reader.damage or self.remark,
                fix="run 'avq log verify' to list what can be read",
            )

    def close(self) -> None:
        self._reader.close()
