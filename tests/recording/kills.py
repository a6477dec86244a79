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


@dataclass(frozen=True)
class Kill:
    """``due`` messages were logged 100 ms before the kill or earlier; of them ``missing`` were not recovered."""

    logged: int
    due: int
    missing: int
    unlike: bool


def kill_once(folder: Path, rng: random.Random, query: str = "image=jpeg") -> Kill:
    """One life: killed 0.1 to 0.7 s after its first message."""
    path = folder / "killed.mcap"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.recording.log_until_killed", f"{path}?{query}"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    first = process.stdout.readline()
    time.sleep(rng.uniform(0.1, 0.7))
    killed_ns = time.monotonic_ns()
    process.kill()
    lines = [first, *process.stdout.read().splitlines()]
    process.wait()
    process.stdout.close()
    rows = [tuple(map(int, line.split())) for line in lines if len(line.split()) == 2]
    due = [seq for seq, t_ns in rows if t_ns <= killed_ns - SAFE_NS]
    found = standard_reader(path)
    with LogReader(path) as log:
        ours = [record.sequence for record in log if record.topic.endswith("/detections")]
    missing = len(set(due) - set(found))
    return Kill(len(rows), len(due), missing, unlike=ours != found or found != sorted(found))


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
