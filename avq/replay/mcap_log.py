"""MCAP logs for replay: avq's own flight records, and ROS 2 or Foxglove recordings with images."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import msgspec

from avq.daemon.run_events import ENDED, STARTED
from avq.errors import DataError
from avq.recording import LogReader, Record
from avq.recording.images import decode_image, is_image
from avq.recording.source import choose_topic, parse_log_uri, topic_bit_depth
from avq.replay.log import FrameKey, Log, LoggedFrame, RecordedTimes, RunLimits, Taken, file_digest
from avq.replay.recorded_run import as_taken, estimated_arrivals
from avq.types import U8, LatencyBudget, StageTimes

_OURS = re.compile(r"/camera/(.+)/image")
_DETECTIONS = "avq.Detections"
_WORKERS = 2
_STEP_BACK_NS = 1_000_000_000
_INTERVAL_NS = 33_333_333
#: Pictures that may wait in memory for those before them; topics further apart in the file are read separately.
_WAITING_BYTES = 64 << 20


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
    deadline_ns: int = 0


class _Started(msgspec.Struct, tag_field="kind", tag=STARTED):
    deadline_ns: int
    window_frames: int
    max_miss_ratio: float
    deadlines_ns: dict[str, int]
    costs_ns: dict[str, float]


class _Ended(msgspec.Struct, tag_field="kind", tag=ENDED):
    captured: dict[str, int]
    live: list[str]


class _Served(msgspec.Struct):
    camera: str
    seq: int
    bundle: str = ""


@dataclass(frozen=True, slots=True)
class _Place:
    """Position and times of one picture: the ``n``-th of its topic; times in Unix nanoseconds.

    ``counted``: the sequence number is that of the recording daemon.
    """

    topic: str
    n: int
    camera: str
    seq: int
    t_capture_ns: int
    arrival_ns: int
    counted: bool = False

    @property
    def key(self) -> FrameKey:
        return self.camera, self.seq


@dataclass
class _Scan:
    """Index of the file from one pass; pictures are not kept."""

    stamps: dict[str, list[tuple[int, int, int]]] = field(default_factory=lambda: defaultdict(list))
    sizes: list[tuple[str, int]] = field(
        default_factory=list
    )  # (topic, bytes) of every picture, in file order
    timings: dict[FrameKey, _Timing] = field(default_factory=dict)
    bundles: dict[FrameKey, str] = field(default_factory=dict)
    run_events: list[_Started | _Ended] = field(default_factory=list)
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
    places, taken = _places(scan, topics)
    first_ns = min(place.t_capture_ns for place in places)
    by_key = {place.key: place for place in places}
    recorded = [replace(by_key[frame.key], arrival_ns=frame.taken_ns) for frame in taken or ()]
    apart = _waiting_bytes(scan, places) > _WAITING_BYTES
    return Log(
        uri,
        live=True,
        frames=lambda: _frames(path, places, first_ns, apart=apart),
        digest=lambda: file_digest(path),
        recorded=_recorded(scan),
        workers=_WORKERS,
        start_unix_ns=first_ns,
        remark=scan.damage,
        limits=_limits(scan),
        taken=taken,
        frames_as_taken=(
            (lambda: _frames(path, recorded, first_ns, apart=apart)) if taken is not None else None
        ),
    )


def _limits(scan: _Scan) -> RunLimits | None:
    """Return the limits of the run; None for logs without them, and for logs of several runs."""
    starts = [event for event in scan.run_events if isinstance(event, _Started)]
    ends = [event for event in scan.run_events if isinstance(event, _Ended)]
    if len(starts) != 1 or len(ends) > 1:
        return None
    start, end = starts[0], ends[0] if ends else None
    return RunLimits(
        LatencyBudget(start.deadline_ns, start.window_frames, start.max_miss_ratio),
        start.deadlines_ns,
        start.costs_ns,
        end.captured if end is not None else None,
        frozenset(end.live) if end is not None else None,
    )


class _OneOrder:
    """Times in one order although the clock was set back while the log was written.

    A picture more than a second before the one before it, of its topic, begins a part of another clock: its times are
    shifted to continue those before.
    """

    def __init__(self) -> None:
        self._shift_ns = 0
        self._last: dict[str, tuple[int, int]] = {}  # topic -> (time, interval)

    def shift_ns(self, topic: str, log_ns: int) -> int:
        """Return what to add to the times of a picture, in file order."""
        last = self._last.get(topic)
        at_ns = log_ns + self._shift_ns
        if last is not None and at_ns < last[0] - _STEP_BACK_NS:
            self._shift_ns += last[0] + last[1] - at_ns
            at_ns = log_ns + self._shift_ns
        interval_ns = at_ns - last[0] if last is not None else 0
        usual = 0 < interval_ns < _STEP_BACK_NS
        self._last[topic] = (at_ns, interval_ns if usual else (last[1] if last is not None else _INTERVAL_NS))
        return self._shift_ns


def _scan(path: Path) -> _Scan:
    scan = _Scan()
    timing = msgspec.json.Decoder(_Timing)
    served = msgspec.json.Decoder(_Served)
    events: msgspec.json.Decoder[_Started | _Ended] = msgspec.json.Decoder(_Started | _Ended)
    order = _OneOrder()
    with LogReader(path) as log:
        for record in log:
            if is_image(record):
                shift_ns = order.shift_ns(record.topic, record.log_time_ns)
                publish_ns = record.publish_time_ns and record.publish_time_ns + shift_ns
                scan.stamps[record.topic].append((record.log_time_ns + shift_ns, publish_ns, record.sequence))
                scan.sizes.append((record.topic, len(record.data)))
            elif record.topic == "/avq/timing" and record.message_encoding == "json":
                row = _decoded(timing, record)
                if row is not None:
                    scan.timings[row.camera, row.seq] = row
            elif record.topic == "/avq/events" and record.message_encoding == "json":
                event = _decoded(events, record)
                if event is not None:
                    scan.run_events.append(event)
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
            row.age_ns,
            row.deadline_ns,
        )
        for key, row in scan.timings.items()
    }


def _places(scan: _Scan, topics: list[str]) -> tuple[list[_Place], list[Taken] | None]:
    """Return every picture in order of arrival, and the published frames as the recording loop took them.

    Ties keep the order of the topic names; pictures of one topic keep theirs.
    """
    places = [place for topic in topics for place in _topic_places(scan, topic)]
    recorded, typical = estimated_arrivals(_taken(places, scan.timings))
    arrivals = {frame.key: frame.arrival_ns for frame in recorded}
    if scan.timings:
        places = [
            replace(
                place,
                arrival_ns=arrivals.get(place.key, place.t_capture_ns + typical.get(place.camera, 0)),
            )
            for place in places
        ]
    arrived = [
        place for topic in topics for place in _in_order(place for place in places if place.topic == topic)
    ]
    arrived.sort(key=lambda place: (place.arrival_ns, place.topic, place.n))
    complete = bool(recorded) and len(recorded) == len(places)
    return arrived, as_taken(recorded) if complete else None


def _topic_places(scan: _Scan, topic: str) -> Iterator[_Place]:
    """Yield the pictures of a topic. Capture is the publish time if recorded; avq logs the time of publication."""
    stamps = scan.stamps[topic]
    match = _OURS.fullmatch(topic)
    camera = match.group(1) if match else topic.strip("/")
    sequences = [sequence for _, _, sequence in stamps]
    counted = scan.ours and all(a < b for a, b in pairwise(sequences))
    order = range(len(stamps)) if scan.ours else sorted(range(len(stamps)), key=lambda n: stamps[n][0])
    for rank, n in enumerate(order):
        log_ns, publish_ns, sequence = stamps[n]
        capture_ns = publish_ns if 0 < publish_ns <= log_ns else log_ns
        arrival_ns = capture_ns if scan.ours else log_ns
        seq = sequence if counted else rank
        yield _Place(topic, n, camera, seq, capture_ns, arrival_ns, counted)


def _in_order(places: Iterable[_Place]) -> Iterator[_Place]:
    """Yield the pictures of one camera with arrivals that never fall: they keep their order."""
    last_ns = 0
    for place in places:
        last_ns = max(last_ns, place.arrival_ns)
        yield replace(place, arrival_ns=last_ns)


def _taken(places: Sequence[_Place], timings: Mapping[FrameKey, _Timing]) -> list[Taken]:
    """Return the pictures that the log has times of."""
    rows = ((place, timings.get(place.key)) for place in places if place.counted)
    return [
        Taken(
            place.key,
            place.t_capture_ns,
            place.t_capture_ns,
            StageTimes(row.queue_ns, row.preprocess_ns, row.infer_ns, row.decode_ns),
            row.age_ns,
        )
        for place, row in rows
        if row is not None
    ]


def _waiting_bytes(scan: _Scan, places: list[_Place]) -> int:
    """Return how many bytes of pictures would wait at once, if the file was read once, in its order."""
    topics = {place.topic for place in places}
    counts: dict[str, int] = defaultdict(int)
    in_file: list[tuple[tuple[str, int], int]] = []
    for topic, size in scan.sizes:
        if topic in topics:
            in_file.append(((topic, counts[topic]), size))
            counts[topic] += 1
    reader = iter(in_file)
    waiting: dict[tuple[str, int], int] = {}
    total = most = 0
    for place in places:
        key = (place.topic, place.n)
        while key not in waiting:
            number, size = next(reader)
            waiting[number] = size
            total += size
            most = max(most, total)
        total -= waiting.pop(key)
    return most


def _frames(
    path: Path, places: list[_Place], first_ns: int, *, apart: bool
) -> Generator[LoggedFrame, None, None]:
    """Read the file again in file order and yield the pictures in order of arrival.

    Args:
        path: of the log.
        places: of the pictures, in order of arrival.
        first_ns: time of the first capture.
        apart: read each topic by itself, as topics lie one after the other.
    """
    topics = sorted({place.topic for place in places})
    depths = {topic: topic_bit_depth(path, topic) for topic in topics}
    groups = [[topic] for topic in topics] if apart else [topics]
    with ExitStack() as stack:
        readers: dict[str, _Waiting] = {}
        for group in groups:
            needed = {(place.topic, place.n) for place in places if place.topic in group}
            reader = _Waiting(_numbered(stack.enter_context(LogReader(path)), needed))
            readers.update(dict.fromkeys(group, reader))
        for place in places:
            record = readers[place.topic].take((place.topic, place.n))
            yield LoggedFrame(
                place.camera,
                place.seq,
                place.t_capture_ns - first_ns,
                place.arrival_ns - first_ns,
                partial(_pixels, record, depths[place.topic]),
            )


class _Waiting:
    """Pictures of one reader by number; those read too early wait."""

    def __init__(self, pictures: Iterator[tuple[tuple[str, int], Record]]) -> None:
        self._pictures = pictures
        self._waiting: dict[tuple[str, int], Record] = {}

    def take(self, key: tuple[str, int]) -> Record:
        while key not in self._waiting:
            number, record = next(self._pictures)
            self._waiting[number] = record
        return self._waiting.pop(key)


def _numbered(log: LogReader, needed: set[tuple[str, int]]) -> Iterator[tuple[tuple[str, int], Record]]:
    counts: dict[str, int] = defaultdict(int)
    for record in log:
        if is_image(record):
            key = (record.topic, counts[record.topic])
            counts[record.topic] += 1
            if key in needed:
                yield key, record


def _pixels(record: Record, bit_depth: int) -> U8 | None:
    try:
        return decode_image(record, bit_depth)
    except ValueError:
        return None
