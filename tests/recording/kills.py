"""Kill a logging process at a random moment and see what a standard reader still finds."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from mcap.exceptions import McapError
from mcap.records import Channel, Message
from mcap.stream_reader import StreamReader

from avq.recording import LogReader
from tests.conftest import ROOT

SAFE_NS = 100_000_000
#: Between two messages lie a few milliseconds; a process that took longer stood, and that time is not its own.
_STOOD_NS = 20_000_000


@dataclass(frozen=True)
class Kill:
    """``due`` messages were logged 100 ms of the process's own time before the kill, or earlier; of them ``missing``
    were not recovered."""

    logged: int
    due: int
    missing: int
    unlike: bool


def kill_once(folder: Path, rng: random.Random, query: str = "image=jpeg") -> Kill:
    """One life: killed after 20 to 120 messages, at any moment between two."""
    path = folder / "killed.mcap"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.recording.log_until_killed", f"{path}?{query}"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(rng.randint(20, 120))]
    time.sleep(rng.uniform(0, 0.01))
    killed_ns = time.monotonic_ns()
    process.kill()
    lines += process.stdout.read().splitlines()
    process.wait()
    process.stdout.close()
    rows = [tuple(map(int, line.split())) for line in lines if len(line.split()) == 2]
    due = _due(rows, killed_ns)
    path = newest_log(folder)
    found = standard_reader(path)
    with LogReader(path) as log:
        ours = [record.sequence for record in log if record.topic.endswith("/detections")]
    missing = len(set(due) - set(found))
    return Kill(len(rows), len(due), missing, unlike=ours != found or found != sorted(found))


def newest_log(folder: Path) -> Path:
    """The log of the last life: an earlier one is never replaced."""
    return max(folder.glob("killed*.mcap"), key=lambda path: path.stat().st_mtime_ns)


def _due(rows: list[tuple[int, ...]], killed_ns: int) -> list[int]:
    """Sequence numbers of what was logged ``SAFE_NS`` before the kill or earlier."""
    ends_ns = [t_ns for _, t_ns in rows[1:]] + [killed_ns]
    before_ns, due = 0, []
    for (seq, t_ns), end_ns in reversed(list(zip(rows, ends_ns, strict=True))):
        before_ns += max(0, min(end_ns - t_ns, _STOOD_NS))
        if before_ns >= SAFE_NS:
            due.append(seq)
    return due


def standard_reader(path: Path) -> list[int]:
    """Sequence numbers of detections as the mcap package's own streaming reader gives them."""
    topics: dict[int, str] = {}
    found: list[int] = []
    with path.open("rb") as file, contextlib.suppress(McapError):
        for record in StreamReader(file).records:
            if isinstance(record, Channel):
                topics[record.id] = record.topic
            elif isinstance(record, Message) and topics[record.channel_id].endswith("/detections"):
                found.append(json.loads(record.data)["seq"])
    return found
