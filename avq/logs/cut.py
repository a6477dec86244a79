"""Cut a log by time, event and topic, optionally blurred; merge several logs by log time.

A cut that keeps everything recovers a log whose writer was killed: the output is complete and indexed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import msgspec

from avq.errors import DataError, RequestError, nearest
from avq.logs.blur import BlurSummary, make_blur
from avq.logs.reading import Log, open_log
from avq.logs.writing import McapOutput, new_output
from avq.plugins import PluginHost
from avq.progress import Reporter
from avq.recording import Record

EVENTS = "/avq/events"
ANY = "any"

Window = tuple[int, int]
Change = Callable[[Record], "Record | None"]


@dataclass(frozen=True)
class Part:
    """Selection of messages; times are seconds of log time since the first message.

    Attributes:
        start_s: None starts at the first message.
        end_s: None ends at the last message.
        around: kinds of events ("any" for all); keeps the messages within ``before_s`` and ``after_s`` of one.
        before_s: seconds before an event.
        after_s: seconds after an event.
        topics: topics to keep; empty keeps all.
    """

    start_s: float | None = None
    end_s: float | None = None
    around: Sequence[str] = ()
    before_s: float = 5.0
    after_s: float = 5.0
    topics: Sequence[str] = ()


class CutResult(TypedDict, total=False):
    """Keys of ``avq log cut --json``; ``blur`` with ``--blur`` only."""

    output: str
    messages: int
    of: int
    windows: list[list[float]]
    damage: str
    blur: BlurSummary


class MergeResult(TypedDict):
    """Keys of ``avq log merge --json``; ``damage`` is by input file."""

    output: str
    messages: int
    of: int
    held_twice: int
    damage: dict[str, str]
    notes: list[str]


def cut(
    path: Path,
    output: Path,
    part: Part,
    *,
    host: PluginHost,
    report: Reporter,
    blurred: bool = False,
    bundle: Path | None = None,
    blur_classes: Sequence[str] = (),
) -> CutResult:
    """Write the selected part of a log.

    Raises:
        RequestError: no message is left, an event or topic is not in the log, or blurring has no source of boxes.
        DataError: the log cannot be read, or the output cannot be written.
    """
    new_output(output, path)
    content = survey(path)
    windows = _windows(content, part)
    for topic in part.topics:
        if topic not in content.topics:
            raise RequestError(
                f"{path} has no topic '{topic}'", seen=topic, fix=nearest(topic, content.topics)
            )
    with make_blur(path, blurred, bundle, blur_classes, host) as blur, closing(open_log(path)) as log:

        def change(record: Record) -> Record | None:
            inside = any(low <= record.log_time_ns <= high for low, high in windows)
            if not inside or (part.topics and record.topic not in part.topics):
                return None
            return blur(record) if blur else record

        written = rewrite(log, output, change, report, content.messages, attachments=blur is None)
        result: CutResult = {
            "output": str(output),
            "messages": written,
            "of": content.messages,
            "windows": [[_seconds(content, low), _seconds(content, high)] for low, high in windows],
            "damage": log.damage,
        }
        if blur:
            result["blur"] = blur.summary()
        return result


def rewrite(
    log: Log, output: Path, change: Change, report: Reporter, total: int, *, attachments: bool
) -> int:
    """Write the records of ``log`` to an MCAP file, each as ``change`` returns it; None drops a record.

    Returns:
        The number of messages written.

    Raises:
        RequestError: no message is left; no output is written.
    """
    with McapOutput(output, log.profile) as out:
        for record in report.track(log, "messages", total):
            kept = change(record)
            if kept is not None:
                out.write(kept)
        if not out.messages:
            raise RequestError(
                f"the cut keeps no message of {log.path}",
                seen=f"0 of {log.messages} messages",
                fix="widen the time range, or name more topics",
            )
        out.add_metadata(log.metadata)
        if attachments:
            out.add_attachments(log.attachments)
    if log.damage:
        report.warning(f"{log.path} is damaged, the readable part was written: {log.damage}")
    return out.messages


@dataclass
class Survey:
    """Overview of a log, which a cut needs in advance. Times are log times; events are (kind, time in ns)."""

    path: Path
    messages: int
    start_ns: int
    end_ns: int
    topics: frozenset[str]
    events: Sequence[tuple[str, int]]


def survey(path: Path) -> Survey:
    """Read a log once and return its overview. Raises DataError when no message can be read."""
    low, high, count = 2**64, 0, 0
    topics: set[str] = set()
    events: list[tuple[str, int]] = []
    with closing(open_log(path)) as log:
        for record in log:
            low, high, count = min(low, record.log_time_ns), max(high, record.log_time_ns), count + 1
            topics.add(record.topic)
            if record.topic == EVENTS:
                events.append((_event_kind(record), record.log_time_ns))
        if not count:
            raise DataError(
                f"{path}: no complete message can be read",
                seen=log.damage or "a log without messages",
                fix="run 'avq log verify' to see the damage",
            )
    return Survey(path, count, low, high, frozenset(topics), events)


class _Event(msgspec.Struct):
    kind: str = ""


def _event_kind(record: Record) -> str:
    try:
        return msgspec.json.decode(record.data, type=_Event).kind
    except msgspec.MsgspecError:
        return ""


def _windows(content: Survey, part: Part) -> list[Window]:
    low = content.start_ns + int((part.start_s or 0.0) * 1e9)
    high = content.end_ns if part.end_s is None else content.start_ns + int(part.end_s * 1e9)
    if low > high:
        raise RequestError(
            "--to is before --from",
            seen=f"{part.start_s} s to {part.end_s} s",
            fix="give --from A --to B with A below B",
        )
    if not part.around:
        return [(low, high)]
    kinds = sorted({kind for kind, _ in content.events})
    for kind in part.around:
        if kind != ANY and kind not in kinds:
            raise RequestError(
                f"{content.path} has no event '{kind}'", seen=kind, fix=nearest(kind, [*kinds, ANY])
            )
    times = [t for kind, t in content.events if ANY in part.around or kind in part.around]
    if not times:
        raise RequestError(
            f"{content.path} holds no events",
            seen=f"no message on {EVENTS}",
            fix="cut by time: --from A --to B",
        )
    before_ns, after_ns = int(part.before_s * 1e9), int(part.after_s * 1e9)
    return _joined((max(low, t - before_ns), min(high, t + after_ns)) for t in sorted(times))


def _joined(windows: Iterator[Window]) -> list[Window]:
    joined: list[Window] = []
    for low, high in windows:
        if low > high:
            continue
        if joined and low <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return joined


def _seconds(content: Survey, t_ns: int) -> float:
    return round((t_ns - content.start_ns) / 1e9, 6)


# Merge several logs of one drive by log time; a message in two of them is written once.

_MAX_DELAY_NS = 1_000_000_000
_CLOCK = ("avq", "unix_minus_monotonic_ns")


def merge(paths: Sequence[Path], output: Path, report: Reporter) -> MergeResult:
    """Write the messages of all logs in the order of their log times; earlier arguments win ties.

    Raises:
        RequestError: there are fewer than two logs, or the output is one of them.
        DataError: a log cannot be read, or the output cannot be written.
    """
    if len(paths) < 2:
        raise RequestError("merging needs at least two logs", seen=str(len(paths)), fix="name all logs")
    new_output(output, *paths)
    with ExitStack() as stack:
        logs = [stack.enter_context(closing(open_log(path))) for path in paths]
        merged = _Merged(logs)
        with McapOutput(output, logs[0].profile) as out:
            for record in report.track(merged, "messages", 0):
                out.write(record)
            if not out.messages:
                raise RequestError("no message of the logs can be read", fix="run 'avq log verify'")
            out.add_metadata(_metadata(logs))
            for log in logs:
                out.add_attachments(log.attachments)
    damage = {str(log.path): log.damage for log in logs if log.damage}
    for path, reason in damage.items():
        report.warning(f"{path} is damaged, the readable part was written: {reason}")
    notes = [*_clock_notes(logs), *_metadata_notes(logs)]
    for note in notes:
        report.warning(note)
    return {
        "output": str(output),
        "messages": out.messages,
        "of": sum(log.messages for log in logs),
        "held_twice": merged.duplicates,
        "damage": damage,
        "notes": notes,
    }


class _Merged:
    """Records of all logs by log time; ``duplicates`` counts the records skipped because another log had them."""

    def __init__(self, logs: Sequence[Log]) -> None:
        self._logs = logs
        self.duplicates = 0

    def __iter__(self) -> Iterator[Record]:
        sources = [_sorted(index, log) for index, log in enumerate(self._logs)]
        now_ns = -1
        current: dict[tuple[str, int, int, bytes], int] = {}
        for time_ns, source, _, record in heapq.merge(*sources):
            if time_ns != now_ns:
                now_ns, current = time_ns, {}
            key = (record.topic, record.publish_time_ns, record.sequence, record.data)
            # a message repeated within one log is kept
            if current.setdefault(key, source) != source:
                self.duplicates += 1
            else:
                yield record


def _sorted(source: int, log: Log) -> Iterator[tuple[int, int, int, Record]]:
    """Yield records by log time, for messages at most a second out of order: writers have several threads."""
    waiting: list[tuple[int, int, int, Record]] = []
    newest_ns = 0
    for number, record in enumerate(log):
        heapq.heappush(waiting, (record.log_time_ns, source, number, record))
        newest_ns = max(newest_ns, record.log_time_ns)
        while waiting[0][0] < newest_ns - _MAX_DELAY_NS:
            yield heapq.heappop(waiting)
    while waiting:
        yield heapq.heappop(waiting)


def _metadata(logs: Sequence[Log]) -> dict[str, dict[str, str]]:
    """Return the metadata of all logs; where names conflict, the later one gets its file name or path appended."""
    merged: dict[str, dict[str, str]] = {}
    for number, log in enumerate(logs, start=1):
        for name, table in log.metadata.items():
            keys = (
                name,
                f"{name} ({log.path.name})",
                f"{name} ({log.path})",
                f"{name} ({log.path}, {number})",
            )
            key = next(key for key in keys if merged.get(key, table) == table)
            merged[key] = table
    return merged


def _metadata_notes(logs: Sequence[Log]) -> list[str]:
    """Report the records that were renamed because logs have different ones of one name."""
    original = {name for log in logs for name in log.metadata}
    renamed = sorted(set(_metadata(logs)) - original)
    return [f"metadata records of one name differ; also stored as: {', '.join(renamed)}"] if renamed else []


def _clock_notes(logs: Sequence[Log]) -> list[str]:
    offsets = {log.metadata.get(_CLOCK[0], {}).get(_CLOCK[1]) for log in logs} - {None}
    if len(offsets) < 2:
        return []
    return [
        "the logs come from runs with different monotonic clocks: log times are comparable, t_capture_ns of the "
        "messages are not"
    ]
