"""Open sources that can be replayed as a ``Log``: MCAP files, videos, folders of pictures and drawn drives.

MCAP files are avq's own flight records, or ROS 2 and Foxglove recordings with images.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import msgspec

from avq.daemon.registry import source_types
from avq.errors import AvqError, DataError, RequestError, UnreadablePictureError
from avq.hookspecs import FileSource, FrameSource, SourceType
from avq.recording import LogReader, Record
from avq.recording.images import decode_image, is_image
from avq.recording.source import choose_topic, parse_log_uri
from avq.replay.log import EndOfLogError, FrameKey, Log, LoggedFrame, RecordedTimes, file_digest
from avq.sources import open_source
from avq.sources.files import SUFFIXES
from avq.sources.scene import DrawnDrive, asked_drive
from avq.sources.uri import local_path
from avq.types import U8, StageTimes

_OURS = re.compile(r"/camera/(.+)/image")
_DETECTIONS = "avq.Detections"
_WORKERS = 2
#: A frame taken within this time after the previous one was already waiting: the loop was not idle.
_HANDOVER_NS = 1_000_000


T = TypeVar("T")


class _Timing(msgspec.Struct):
    camera: str
    seq: int
    t_capture_ns: int
    queue_ns: int
    preprocess_ns: int
    infer_ns: int
    decode_ns: int
    age_ns: int


class _Served(msgspec.Struct):
    camera: str
    seq: int
    bundle: str = ""


@dataclass(frozen=True, slots=True)
class _Place:
    """Position and times of one picture: the ``n``-th of its topic; times in Unix nanoseconds."""

    topic: str
    n: int
    camera: str
    seq: int
    t_capture_ns: int
    arrival_ns: int


@dataclass
class _Scan:
    """Index of the file from one pass; pictures are not kept."""

    stamps: dict[str, list[tuple[int, int, int]]] = field(default_factory=lambda: defaultdict(list))
    timings: dict[FrameKey, _Timing] = field(default_factory=dict)
    bundles: dict[FrameKey, str] = field(default_factory=dict)
    ours: bool = False
    damage: str = ""


def open_mcap(uri: str) -> Log:
    """Open ``drive.mcap``, or ``drive.mcap?topic=/camera/front/image`` for one camera of several.

    Raises:
        DataError: the file holds no images.
        RequestError: the topic does not exist.
    """
    path, topic = parse_log_uri(uri)
    scan = _scan(path)
    if not scan.stamps:
        raise _no_pictures(path, scan)
    if topic is not None:
        choose_topic(path, topic)
    topics = [topic] if topic is not None else sorted(scan.stamps)
    places = _places(scan, topics)
    first_ns = min(place.t_capture_ns for place in places)
    return Log(
        uri,
        live=True,
        frames=lambda: _frames(path, places, first_ns),
        digest=lambda: file_digest(path),
        recorded=_recorded(scan),
        workers=_WORKERS,
        start_unix_ns=first_ns,
        remark=scan.damage,
    )


def _scan(path: Path) -> _Scan:
    scan = _Scan()
    timing = msgspec.json.Decoder(_Timing)
    served = msgspec.json.Decoder(_Served)
    with LogReader(path) as log:
        for record in log:
            if is_image(record):
                scan.stamps[record.topic].append(
                    (record.log_time_ns, record.publish_time_ns, record.sequence)
                )
            elif record.topic == "/avq/timing" and record.message_encoding == "json":
                row = _decoded(timing, record)
                if row is not None:
                    scan.timings[row.camera, row.seq] = row
            elif record.schema_name == _DETECTIONS and record.message_encoding == "json":
                message = _decoded(served, record)
                if message is not None:
                    scan.bundles[message.camera, message.seq] = message.bundle
        scan.damage = log.damage
        scan.ours = "avq" in log.metadata
    return scan


def _decoded(decoder: msgspec.json.Decoder[T], record: Record) -> T | None:
    """Return the message; None when it does not match the schema of its channel."""
    try:
        return decoder.decode(record.data)
    except msgspec.MsgspecError:
        return None


def _no_pictures(path: Path, scan: _Scan) -> DataError:
    if scan.bundles:
        return DataError(
            f"the log {path} holds no images to replay",
            seen=f"a flight record of {len(scan.bundles)} frames without images",
            fix="record with images: --log drive.mcap, or the sink drive.mcap?image=jpeg",
        )
    return DataError(
        f"the log {path} holds no images to replay",
        seen=scan.damage or "no image messages",
        fix="supported: CompressedImage and RawImage of foxglove, CompressedImage and Image of ROS 2",
    )


def _recorded(scan: _Scan) -> Mapping[FrameKey, RecordedTimes]:
    return {
        key: RecordedTimes(
            StageTimes(row.queue_ns, row.preprocess_ns, row.infer_ns, row.decode_ns),
            scan.bundles.get(key, ""),
        )
        for key, row in scan.timings.items()
    }


def _places(scan: _Scan, topics: list[str]) -> list[_Place]:
    """Return every picture in order of arrival; ties keep the order of the topic names."""
    places = [place for topic in topics for place in _topic_places(scan, topic)]
    if scan.timings:
        places = _arrivals(places, scan.timings)
    return sorted(places, key=lambda place: (place.arrival_ns, place.topic, place.n))


def _topic_places(scan: _Scan, topic: str) -> Iterator[_Place]:
    """Yield the pictures of a topic. Capture is the publish time if recorded; avq logs the time of publication."""
    stamps = scan.stamps[topic]
    match = _OURS.fullmatch(topic)
    camera = match.group(1) if match else topic.strip("/")
    sequences = [sequence for _, _, sequence in stamps]
    counted = scan.ours and all(a < b for a, b in pairwise(sequences))
    for n, (log_ns, publish_ns, sequence) in enumerate(stamps):
        capture_ns = publish_ns if 0 < publish_ns <= log_ns else log_ns
        arrival_ns = capture_ns if scan.ours else log_ns
        yield _Place(topic, n, camera, sequence if counted else n, capture_ns, arrival_ns)


def _arrivals(places: list[_Place], timings: Mapping[FrameKey, _Timing]) -> list[_Place]:
    """Estimate when each picture reached the inbox.

    An idle loop takes a frame on arrival. A frame taken as soon as the previous one was done arrived earlier, at an
    unknown time: the typical delay of the camera's idle frames after their capture is assumed.
    """
    order = sorted(places, key=lambda place: place.t_capture_ns)
    idle: dict[FrameKey, int] = {}
    free_ns = 0
    for place in order:
        row = timings.get((place.camera, place.seq))
        if row is None:
            continue
        taken_ns = place.t_capture_ns + row.queue_ns
        if taken_ns > free_ns + _HANDOVER_NS:
            idle[place.camera, place.seq] = row.queue_ns
        free_ns = max(free_ns, place.t_capture_ns + row.age_ns)
    typical: dict[str, int] = {}
    for (camera, _), queue_ns in idle.items():
        typical[camera] = min(queue_ns, typical.get(camera, queue_ns))
    moved = []
    for place in order:
        row = timings.get((place.camera, place.seq))
        delay_ns = typical.get(place.camera, 0)
        if row is not None:
            delay_ns = idle.get((place.camera, place.seq), min(row.queue_ns, delay_ns))
        moved.append(replace(place, arrival_ns=place.t_capture_ns + max(0, delay_ns)))
    return moved


def _frames(path: Path, places: list[_Place], first_ns: int) -> Generator[LoggedFrame, None, None]:
    """Read the file again in file order and yield the pictures in order of arrival."""
    needed = {(place.topic, place.n) for place in places}
    with LogReader(path) as log:
        pictures = _numbered(log, needed)
        waiting: dict[tuple[str, int], Record] = {}
        for place in places:
            key = (place.topic, place.n)
            while key not in waiting:
                number, record = next(pictures)
                waiting[number] = record
            record = waiting.pop(key)
            yield LoggedFrame(
                place.camera,
                place.seq,
                place.t_capture_ns - first_ns,
                place.arrival_ns - first_ns,
                partial(_pixels, record),
            )


def _numbered(log: LogReader, needed: set[tuple[str, int]]) -> Iterator[tuple[tuple[str, int], Record]]:
    counts: dict[str, int] = defaultdict(int)
    for record in log:
        if is_image(record):
            key = (record.topic, counts[record.topic])
            counts[record.topic] += 1
            if key in needed:
                yield key, record


def _pixels(record: Record) -> U8 | None:
    try:
        return decode_image(record)
    except ValueError:
        return None


CAMERA = "camera"
#: Frame rate of sources without times, such as folders; used with ``--newest`` only.
_NOMINAL_FPS = 30.0


def open_log(uri: str, outside: Sequence[SourceType] = ()) -> Log:
    """Open the log at ``uri``: MCAP, video, folder, picture, or a scene:// drive with a number of frames.

    Args:
        uri: path or URI.
        outside: source types of plugins.

    Raises:
        RequestError: the source is a camera or stream, which cannot be read twice, or a drive without an end.
        DataError: it is missing, unreadable, or holds no pictures.
    """
    if uri.startswith("scene://"):
        return _drawn(uri)
    path = local_path(uri)
    if path.suffix.lower() == ".mcap" and path.is_file():
        return open_mcap(uri)
    return _file(uri, (*source_types(), *outside))


def _drawn(uri: str) -> Log:
    drive, fps, count = asked_drive(uri)
    if count is None:
        raise RequestError(
            "a scene:// drive without a number of frames cannot be replayed: it has no end",
            seen=uri,
            fix=f"add {'&' if '?' in uri else '?'}frames=300",
        )

    def frames() -> Generator[LoggedFrame, None, None]:
        for index in range(count):
            at_ns = round(index * 1e9 / fps)
            yield LoggedFrame(CAMERA, index, at_ns, at_ns, partial(_drawn_pixels, drive, index))

    return Log(uri, live=True, frames=frames, digest=lambda: hashlib.sha256(uri.encode()).hexdigest())


def _drawn_pixels(drive: DrawnDrive, index: int) -> U8:
    return drive.frame(index).pixels


def _file(uri: str, types: Sequence[SourceType]) -> Log:
    """Open videos and pictures with the daemon's sources; opens the source once here to fail early."""
    source = open_source(uri, types)
    live = source.live
    source.close()
    if live:
        raise RequestError(
            "a live camera cannot be replayed",
            seen=uri,
            fix=f"record it first: avq run --bundle B --source {uri} --log drive.mcap",
        )
    return Log(
        uri, live=False, frames=lambda: _read_frames(uri, types), digest=lambda: _digest_of(local_path(uri))
    )


def _read_frames(uri: str, types: Sequence[SourceType]) -> Generator[LoggedFrame, None, None]:
    """Read a source in order, on the calling thread; the frames are loaded already."""
    source = open_source(uri, types)
    fps = source.fps or _NOMINAL_FPS
    at_ns, index = -1, 0
    with closing(source):
        while True:
            lost_before = _lost(source)
            pixels = _next_picture(source, first=index == 0)
            for _ in range(_lost(source) - lost_before):
                at_ns = max(at_ns + 1, round(index * 1e9 / fps))
                yield _loaded(index, at_ns, None)
                index += 1
            at_ns = max(at_ns + 1, _recorded_ns(source, round(index * 1e9 / fps)))
            yield _loaded(index, at_ns, pixels)
            index += 1


def _loaded(index: int, at_ns: int, pixels: U8 | None) -> LoggedFrame:
    return LoggedFrame(CAMERA, index, at_ns, at_ns, partial(_identity, pixels))


def _lost(source: FrameSource) -> int:
    """Pictures that the source skipped so far; each takes a frame number."""
    return sum(source.lost.values()) if isinstance(source, FileSource) else 0


def _next_picture(source: FrameSource, *, first: bool) -> U8 | None:
    """Read the next picture; None for one that cannot be read.

    Raises EndOfLogError after the last one; an error after the first ends the log there.
    """
    try:
        entry = source.read()
    except UnreadablePictureError:
        return None
    except AvqError as error:
        if first:
            raise
        raise EndOfLogError(f"{error.what}; {error.seen}") from None
    if entry is None:
        raise EndOfLogError(source.remark if isinstance(source, FileSource) else "")
    return entry[0]


def _recorded_ns(source: FrameSource, nominal_ns: int) -> int:
    """Return the time of the last picture since the first: phones and dashcams have no constant frame rate."""
    position_ns = source.position_ns if isinstance(source, FileSource) else None
    return nominal_ns if position_ns is None else position_ns


def _identity(pixels: U8 | None) -> U8 | None:
    return pixels


def _digest_of(path: Path) -> str:
    """Return the digest of a file's bytes; of a folder's picture names and bytes."""
    if not path.is_dir():
        return file_digest(path)
    whole = hashlib.sha256()
    for entry in sorted(path.iterdir()):
        if entry.is_file() and entry.suffix.lower() in SUFFIXES and not entry.name.startswith("."):
            whole.update(f"{entry.name}\0{file_digest(entry)}\n".encode())
    return whole.hexdigest()
