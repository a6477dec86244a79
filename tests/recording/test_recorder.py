"""The flight recorder: killed at any moment, rotated, on a full disk, and around misses only."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avq.daemon import sink_types
from avq.recording import LogReader
from avq.recording.recorder import MissWindowBuffer
from avq.recording.writer import Entry
from avq.sinks import open_sink
from tests.conftest import ROOT
from tests.recording.kills import kill_once
from tests.recording.recording_kit import LABELS, published


def sequences(path: Path, *, whole: bool = True) -> list[int]:
    with LogReader(path) as log:
        found = [record.sequence for record in log if record.topic.endswith("/detections")]
    assert log.damage == "" or not whole
    return found


@pytest.mark.slow
def test_what_was_logged_100_ms_before_a_kill_is_recovered(tmp_path: Path) -> None:
    rng = random.Random(6)
    kills = [kill_once(tmp_path, rng) for _ in range(10)]
    assert sum(kill.due for kill in kills) > 100
    assert [(kill.missing, kill.unlike) for kill in kills] == [(0, False)] * 10


def test_files_rotate_and_the_oldest_go(tmp_path: Path) -> None:
    sink = open_sink(f"{tmp_path / 'run.mcap'}?rotate_mb=0.2&keep_mb=0.6", sink_types(), labels=LABELS)
    for seq in range(400):
        sink.write(*published(seq % 8, boxes=2))
    sink.close()
    files = sorted(tmp_path.glob("run-*.mcap"))
    report = sink.report()  # type: ignore[attr-defined]
    assert report["files"] == len(files) + report["deleted"] and report["deleted"] >= 3 and not report["lost"]
    assert sum(path.stat().st_size for path in files) <= 0.6e6 + 64 * 1024
    found = [seq for path in files for seq in sequences(path)]
    assert found == [seq % 8 for seq in range(400 - len(found), 400)]
    assert not (tmp_path / "run.mcap").exists()


def test_files_rotate_by_time(tmp_path: Path) -> None:
    sink = open_sink(f"{tmp_path / 'run.mcap'}?image=none&rotate_s=1", sink_types(), labels=LABELS)
    for seq in range(100):  # 33 ms apart by their own clock
        sink.write(*published(seq))
    sink.close()
    files = sorted(tmp_path.glob("run-*.mcap"))
    assert [len(sequences(path)) for path in files] == [31, 31, 31, 7]


def test_a_second_run_keeps_the_files_of_the_first(tmp_path: Path) -> None:
    for first in (0, 50):
        sink = open_sink(f"{tmp_path / 'run.mcap'}?image=none&rotate_mb=50", sink_types(), labels=LABELS)
        for seq in range(first, first + 50):
            sink.write(*published(seq))
        sink.close()
    assert [seq for path in sorted(tmp_path.iterdir()) for seq in sequences(path)] == list(range(100))


_ON_A_SMALL_DISK = """
import sys
from pathlib import Path
from tests.recording.test_recorder import *
folder = Path(sys.argv[1])
sink = open_sink(f"{folder / 'run.mcap'}?image=jpeg" + sys.argv[2], sink_types(), labels=LABELS)
for seq in range(500):
    sink.write(*published(seq))
print(*sink.report().values())
sink.close()
print(*(seq for path in sorted(folder.glob("*.mcap")) for seq in sequences(path, whole=bool(sys.argv[2]))))
"""


def on_a_small_disk(folder: Path, query: str) -> tuple[dict[str, int], list[int]]:
    """(report, what is left) of 500 frames logged to a disk of 2 MB."""
    mount = f"mount -t tmpfs -o size=2m none {folder} && exec {sys.executable} -c \"$0\" {folder} '{query}'"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, _ON_A_SMALL_DISK]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    report, left = done.stdout.splitlines()
    return dict(zip(("files", "deleted", "lost"), map(int, report.split()), strict=True)), [
        *map(int, left.split())
    ]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")
def test_on_a_full_disk_the_oldest_file_goes_and_nothing_new_is_lost(tmp_path: Path) -> None:
    report, left = on_a_small_disk(tmp_path, "&rotate_mb=0.4")
    assert report["deleted"] >= 3 and report["lost"] == 0
    assert left == list(range(500 - len(left), 500)) and len(left) > 50


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")
def test_a_full_disk_without_older_files_leaves_a_readable_log(tmp_path: Path) -> None:
    report, left = on_a_small_disk(tmp_path, "")
    assert report["deleted"] == 0 and left == list(range(len(left))) and len(left) > 50


@given(
    st.lists(st.tuples(st.integers(1, 400), st.booleans()), max_size=60),
    st.integers(0, 1000),
    st.integers(0, 1000),
)
def test_exactly_the_time_around_each_miss_is_kept_once_and_in_order(
    frames: list[tuple[int, bool]], before: int, after: int
) -> None:
    window, t, stream, written = MissWindowBuffer(before, after), 0, [], []
    for number, (gap, miss) in enumerate(frames):
        t += gap
        stream.append((t, miss))
        kept = window.take([Entry("/t", {}, b"x", t, t, number)], t, miss=miss)
        written += [one.sequence for one in kept]
    misses = [t for t, miss in stream if miss]
    wanted = [n for n, (t, _) in enumerate(stream) if any(m - before <= t <= m + after for m in misses)]
    assert written == wanted


def test_what_waits_for_a_miss_is_bounded_in_memory() -> None:
    window = MissWindowBuffer(10**18, 0, limit_bytes=1000)
    for n in range(100):
        assert window.take([Entry("/t", {}, bytes(100), n, n, n)], n, miss=False) == []
    assert len(window.take([Entry("/t", {}, b"", 100, 100, 100)], 100, miss=True)) <= 12


def test_log_on_miss_keeps_the_seconds_around_and_every_event(tmp_path: Path) -> None:
    uri = f"{tmp_path / 'run.mcap'}?log_on=miss&before_s=0.1&after_s=0.07&image=none"
    sink = open_sink(uri, sink_types(), labels=LABELS)
    sink.write_event({"kind": "camera_stalled", "t_ns": 5, "reason": "r"})  # type: ignore[attr-defined]
    for seq in range(100):
        message, frame = published(seq)
        sink.write(replace(message, late=seq == 50), frame)
    sink.close()
    assert sequences(tmp_path / "run.mcap") == [47, 48, 49, 50, 51, 52]
    with LogReader(tmp_path / "run.mcap") as log:
        assert sum(record.topic == "/avq/events" for record in log) == 1
    assert log.metadata["avq"]["log_on"] == "miss"
