"""Parts of a log by time, by event and by topic, with people and vehicles blurred where that is asked for.

Cutting nothing away is how a killed log is recovered: the output is whole and indexed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from avq.errors import DataError, RequestError, nearest
from avq.logs.blur import prepared_blur
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
    """Which messages are kept; times in seconds from the first message, by log time.

    Attributes:
        start_s, end_s: None: from the first, to the last.
        around: kinds of events ("any" for all); a message within ``before_s``/``after_s`` of one is kept.
        topics: None: all.
    """

    start_s: float | None = None
    end_s: float | None = None
    around: Sequence[str] = ()
    before_s: float = 5.0
    after_s: float = 5.0
    topics: Sequence[str] = ()


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
) -> dict[str, Any]:
    """Write the asked part of a log; the answer says what was kept, what was damaged, and what blurring did.

    Raises:
        RequestError: nothing is left, an event or topic is not in the log, or blurring has no boxes to go by.
        DataError: the log cannot be read, or the output not written.
    """
    new_output(output, path)
    seen = survey(path)
    windows = _windows(seen, part)
    for topic in part.topics:
        if topic not in seen.topics:
            raise RequestError(f"{path} has no topic '{topic}'", seen=topic, fix=nearest(topic, seen.topics))
    with prepared_blur(path, blurred, bundle, blur_classes, host) as blur, closing(open_log(path)) as log:

        def change(record: Record) -> Record | None:
            inside = any(low <= record.log_time_ns <= high for low, high in windows)
            if not inside or (part.topics and record.topic not in part.topics):
                return None
            return blur(record) if blur else record

        written = rewrite(log, output, change, report, seen.messages, attachments=blur is None)
        return {
            "output": str(output),
            "messages": written,
            "of": seen.messages,
            "windows": [[_seconds(seen, low), _seconds(seen, high)] for low, high in windows],
            "damage": log.damage,
            **({"blur": blur.account()} if blur else {}),
        }


def rewrite(
    log: Log, output: Path, change: Change, report: Reporter, total: int, *, attachments: bool
) -> int:
    """``change`` every record of ``log`` into an MCAP file; the number of messages written.

    Raises:
        RequestError: no message is left; then there is no output.
    """
    with McapOutput(output, log.profile) as out:
        for record in report.track(log, "messages", total):
            kept = change(record)
            if kept is not None:
                out.write(kept)
        if not out.messages:
            raise RequestError(
                f"nothing of {log.path} is left",
                seen=f"0 of {log.messages} messages",
                fix="ask for more of it",
            )
        out.add_metadata(log.metadata)
        if attachments:
            out.add_attachments(log.attachments)
    if log.damage:
        report.warning(f"{log.path} is damaged; what could be read was taken: {log.damage}")
    return out.messages


@dataclass
class Survey:
    """One pass over a log: what a cut needs to know before it starts. Times are log times."""

    path: Path
    messages: int
    start_ns: int
    end_ns: int
    topics: frozenset[str]
    events: Sequence[tuple[str, int]]


def survey(path: Path) -> Survey:
    """Raises DataError when not one message can be read."""
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
                f"{path}: not one whole message can be read",
                seen=log.damage or "a log without messages",
                fix="'avq log verify' says how far it is whole",
            )
    return Survey(path, count, low, high, frozenset(topics), events)


class _Event(msgspec.Struct):
    kind: str = ""


def _event_kind(record: Record) -> str:
    try:
        return msgspec.json.decode(record.data, type=_Event).kind
    except msgspec.MsgspecError:
        return ""


def _windows(seen: Survey, part: Part) -> list[Window]:
    low = seen.start_ns + int((part.start_s or 0.0) * 1e9)
    high = seen.end_ns if part.end_s is None else seen.start_ns + int(part.end_s * 1e9)
    if low > high:
        raise RequestError(
            "the part ends before it starts",
            seen=f"{part.start_s} s to {part.end_s} s",
            fix="--from A --to B",
        )
    if not part.around:
        return [(low, high)]
    kinds = sorted({kind for kind, _ in seen.events})
    for kind in part.around:
        if kind != ANY and kind not in kinds:
            raise RequestError(
                f"{seen.path} has no event '{kind}'", seen=kind, fix=nearest(kind, [*kinds, ANY])
            )
    times = [t for kind, t in seen.events if ANY in part.around or kind in part.around]
    if not times:
        raise RequestError(
            f"{seen.path} holds no events", seen=f"no message on {EVENTS}", fix="cut by time: --from A --to B"
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


def _seconds(seen: Survey, t_ns: int) -> float:
    return round((t_ns - seen.start_ns) / 1e9, 6)


# Several logs of one drive as one, by log time; a message that two of them hold is written once.

_LATE_NS = 1_000_000_000
_CLOCK = ("avq", "unix_minus_monotonic_ns")


def merge(paths: Sequence[Path], output: Path, report: Reporter) -> dict[str, Any]:
    """Write the messages of all logs in the order of their log times; earlier arguments win ties.

    Raises:
        RequestError: fewer than two logs, or the output is one of them.
        DataError: a log cannot be read, or the output not written.
    """
    if len(paths) < 2:
        raise RequestError("merging takes two logs or more", seen=str(len(paths)), fix="name them all")
    new_output(output, *paths)
    with ExitStack() as stack:
        logs = [stack.enter_context(closing(open_log(path))) for path in paths]
        merged = _Merged(logs)
        with McapOutput(output, logs[0].profile) as out:
            for record in report.track(merged, "messages", 0):
                out.write(record)
            if not out.messages:
                raise RequestError("the logs hold no message that can be read", fix="see avq log verify")
            out.add_metadata(_metadata(logs))
            for log in logs:
                out.add_attachments(log.attachments)
    damage = {str(log.path): log.damage for log in logs if log.damage}
    for path, why in damage.items():
        report.warning(f"{path} is damaged; what could be read was taken: {why}")
    notes = _clock_notes(logs)
    for note in notes:
        report.warning(note)
    return {
        "output": str(output),
        "messages": out.messages,
        "of": sum(log.messages for log in logs),
        "held_twice": merged.twice,
        "damage": damage,
        "notes": notes,
    }


class _Merged:
    """Records of all logs by log time. ``twice`` counts those left out because another log held them too."""

    def __init__(self, logs: Sequence[Log]) -> None:
        self._logs = logs
        self.twice = 0

    def __iter__(self) -> Iterator[Record]:
        sources = [_sorted(index, log) for index, log in enumerate(self._logs)]
        now_ns = -1
        held_now: dict[tuple[str, int, int, bytes], int] = {}
        for time_ns, source, _, record in heapq.merge(*sources):
            if time_ns != now_ns:
                now_ns, held_now = time_ns, {}
            key = (record.topic, record.publish_time_ns, record.sequence, record.data)
            # the same message twice in one log is that log's business
            if held_now.setdefault(key, source) != source:
                self.twice += 1
            else:
                yield record


def _sorted(source: int, log: Log) -> Iterator[tuple[int, int, int, Record]]:
    """By log time, as long as no message comes more than a second late: writers have several threads."""
    waiting: list[tuple[int, int, int, Record]] = []
    newest_ns = 0
    for number, record in enumerate(log):
        heapq.heappush(waiting, (record.log_time_ns, source, number, record))
        newest_ns = max(newest_ns, record.log_time_ns)
        while waiting[0][0] < newest_ns - _LATE_NS:
            yield heapq.heappop(waiting)
    while waiting:
        yield heapq.heappop(waiting)


def _metadata(logs: Sequence[Log]) -> dict[str, dict[str, str]]:
    """All metadata; where two logs say different things under one name, the later one's name gets its file's."""
    merged: dict[str, dict[str, str]] = {}
    for log in logs:
        for name, table in log.metadata.items():
            if merged.setdefault(name, table) != table:
                merged[f"{name} ({log.path.name})"] = table
    return merged


def _clock_notes(logs: Sequence[Log]) -> list[str]:
    offsets = {log.metadata.get(_CLOCK[0], {}).get(_CLOCK[1]) for log in logs} - {None}
    if len(offsets) < 2:
        return []
    return [
        "the logs come from runs with clocks of their own: log times are right, t_capture_ns of the messages "
        "count from different starts"
    ]
