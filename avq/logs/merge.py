"""Several logs of one drive as one, by log time; a message that two of them hold is written once."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from avq.errors import RequestError
from avq.logs.reading import Log, open_log
from avq.logs.writing import McapOutput, new_output
from avq.progress import Reporter
from avq.recording import Record

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
