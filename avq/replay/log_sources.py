"""An MCAP file as a log: avq's own flight records, and pictures of ROS 2 and Foxglove recordings."""

from __future__ import annotations

import hashlib
import itertools
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
from avq.errors import AvqError, DataError, RequestError
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
#: A loop that takes a frame within this time after the last one was not idle: it found it waiting.
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
    """Where and when one picture lies in the file: the ``n``-th of its topic."""

    topic: str
    n: int
    camera: str
    seq: int
    t_capture_ns: int
    arrival_ns: int


@dataclass
class _Scan:
    """What one pass over the file tells; pictures are counted, not kept."""

    stamps: dict[str, list[tuple[int, int, int]]] = field(default_factory=lambda: defaultdict(list))
    timings: dict[FrameKey, _Timing] = field(default_factory=dict)
    bundles: dict[FrameKey, str] = field(default_factory=dict)
    ours: bool = False
    damage: str = ""


def open_mcap(uri: str) -> Log:
    """``drive.mcap``, or ``drive.mcap?topic=/camera/front/image`` for one camera of several.

    Raises DataError when it holds no pictures, RequestError for an unknown topic.
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
    """The message; None when it is not what its channel promises."""
    try:
        return decoder.decode(record.data)
    except msgspec.MsgspecError:
        return None


def _no_pictures(path: Path, scan: _Scan) -> DataError:
    if scan.bundles:
        return DataError(
            f"{path} holds no pictures, so there is nothing to replay",
            seen=f"a flight record of {len(scan.bundles)} frames without images",
            fix="record with pictures: --log drive.mcap, or the sink drive.mcap?image=jpeg",
        )
    return DataError(
        f"{path} holds no pictures, so there is nothing to replay",
        seen=scan.damage or "no image messages",
        fix="readable: CompressedImage and RawImage of foxglove, CompressedImage and Image of ROS 2",
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
    """Every picture in order of arrival; ties keep the order of the topics' names."""
    places = [place for topic in topics for place in _topic_places(scan, topic)]
    if scan.timings:
        places = _arrivals(places, scan.timings)
    return sorted(places, key=lambda place: (place.arrival_ns, place.topic, place.n))


def _topic_places(scan: _Scan, topic: str) -> Iterator[_Place]:
    """Capture is the publish time where the recorder kept one; in avq's records log times are publications."""
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
    """When each picture reached the inbox.

    A frame taken by an idle loop was taken when it came. One taken the moment the frame before was done came
    earlier, nobody knows when: as long after its capture as idle ones of that camera typically do.
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
        way_ns = typical.get(place.camera, 0)
        if row is not None:
            way_ns = idle.get((place.camera, place.seq), min(row.queue_ns, way_ns))
        moved.append(replace(place, arrival_ns=place.t_capture_ns + max(0, way_ns)))
    return moved


def _frames(path: Path, places: list[_Place], first_ns: int) -> Generator[LoggedFrame, None, None]:
    """Read the file again, in file order, holding back pictures whose turn has not come."""
    wanted = {(place.topic, place.n) for place in places}
    with LogReader(path) as log:
        pictures = _numbered(log, wanted)
        waiting: dict[tuple[str, int], Record] = {}
        for place in places:
            key = (place.topic, place.n)
            while key not in waiting:
                found, record = next(pictures)
                waiting[found] = record
            record = waiting.pop(key)
            yield LoggedFrame(
                place.camera,
                place.seq,
                place.t_capture_ns - first_ns,
                place.arrival_ns - first_ns,
                partial(_pixels, record),
            )


def _numbered(log: LogReader, wanted: set[tuple[str, int]]) -> Iterator[tuple[tuple[str, int], Record]]:
    counts: dict[str, int] = defaultdict(int)
    for record in log:
        if is_image(record):
            key = (record.topic, counts[record.topic])
            counts[record.topic] += 1
            if key in wanted:
                yield key, record


def _pixels(record: Record) -> U8 | None:
    try:
        return decode_image(record)
    except ValueError:
        return None


# Whatever can be replayed as one kind of thing: records, videos, folders of pictures and drawn drives.

CAMERA = "camera"
#: Pictures of a folder have no times; these stand in, for ``--newest`` only.
_NOMINAL_FPS = 30.0


def open_log(uri: str, outside: Sequence[SourceType] = ()) -> Log:
    """The log at ``uri``: MCAP, video, folder, picture, or a scene:// drive with a number of frames.

    Raises:
        RequestError: a camera or stream, which cannot be asked twice, or a drive without an end.
        DataError: missing, unreadable, or without pictures.
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
            "a drawn drive has no end to replay to",
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
    """Videos and pictures, by the daemon's own sources. They are opened once here to fail early."""
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
    """One source, read in order on the thread that asks; to load a frame is to take what was read."""
    source = open_source(uri, types)
    fps = source.fps or _NOMINAL_FPS
    at_ns = -1
    with closing(source):
        for index in itertools.count():
            pixels = _next_picture(source, first=index == 0)
            at_ns = max(at_ns + 1, _recorded_ns(source, round(index * 1e9 / fps)))
            yield LoggedFrame(CAMERA, index, at_ns, at_ns, partial(_held, pixels))


def _next_picture(source: FrameSource, *, first: bool) -> U8:
    """Raises EndOfLogError after the last one; what breaks after the first one ends the log there."""
    try:
        got = source.read()
    except AvqError as error:
        if first:
            raise
        raise EndOfLogError(f"{error.what}; {error.seen}") from None
    if got is None:
        raise EndOfLogError(source.remark if isinstance(source, FileSource) else "")
    return got[0]


def _recorded_ns(source: FrameSource, nominal_ns: int) -> int:
    """When the last picture was taken, since the first: phones and dashcams keep no steady rate."""
    position_ns = source.position_ns if isinstance(source, FileSource) else None
    return nominal_ns if position_ns is None else position_ns


def _held(pixels: U8) -> U8:
    return pixels


def _digest_of(path: Path) -> str:
    """Of a file's bytes; of a folder's picture names and bytes."""
    if not path.is_dir():
        return file_digest(path)
    whole = hashlib.sha256()
    for entry in sorted(path.iterdir()):
        if entry.is_file() and entry.suffix.lower() in SUFFIXES and not entry.name.startswith("."):
            whole.update(f"{entry.name}\0{file_digest(entry)}\n".encode())
    return whole.hexdigest()
