"""Outputs of a service that is killed and started again, and of two services by mistake."""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from avq.atomic_file import is_locked
from avq.daemon import sink_types
from avq.errors import DataError
from avq.hookspecs import Sink
from avq.output_lock import OutputLock, lock_path
from avq.recording.rotation import Limits, RotatingLog
from avq.serve.sink_opening import open_sinks
from avq.sinks import open_sink
from tests.conftest import ROOT
from tests.recording.kills import kill_once, newest_log, standard_reader
from tests.recording.recording_kit import LABELS, published

LIVES = 6
FORMS: list[tuple[str, str]] = [
    ("r.mcap", "?image=none"),
    ("r.mcap", "?image=none&rotate_mb=50"),
    ("o.jsonl", ""),
]


def opened(path: Path, query: str) -> Sink:
    return open_sink(f"{path}{query}", sink_types(), labels=LABELS)


def run_once(path: Path, query: str, first: int, count: int = 4) -> None:
    sink = opened(path, query)
    for seq in range(first, first + count):
        sink.write(published(seq)[0], None)
    sink.close()


def found(folder: Path) -> list[int]:
    """Sequence numbers in all files of a folder."""
    seqs = [seq for path in folder.glob("*.mcap") for seq in standard_reader(path)]
    for path in folder.glob("*.jsonl"):
        for line in path.read_bytes().splitlines():
            try:
                seqs.append(json.loads(line)["seq"])
            except ValueError:
                continue  # a line that was cut off
    return sorted(seqs)


@pytest.mark.parametrize(("name", "query"), FORMS)
def test_a_second_run_replaces_nothing(tmp_path: Path, name: str, query: str) -> None:
    for first in (0, 4, 8):
        run_once(tmp_path / name, query, first)
    assert found(tmp_path) == list(range(12))
    assert not list(tmp_path.glob(".*")), "no lock file is left"


def test_a_free_name_is_used_as_given_and_a_taken_one_gets_a_time(tmp_path: Path) -> None:
    for first in (0, 4):
        run_once(tmp_path / "r.mcap", "?image=none", first)
    first_log, second_log = sorted(tmp_path.glob("*.mcap"), key=lambda path: len(path.name))
    assert first_log.name == "r.mcap" and standard_reader(first_log) == [0, 1, 2, 3]
    assert second_log.name.startswith("r-20") and second_log.name.endswith("Z.mcap")


@pytest.mark.parametrize(("name", "query"), FORMS)
@pytest.mark.parametrize("other_name", [False, True], ids=["same path", "link"])
def test_a_second_writer_is_refused_and_the_first_goes_on(
    tmp_path: Path, name: str, query: str, other_name: bool
) -> None:
    run_once(tmp_path / name, query, 0)
    first = opened(tmp_path / name, query)
    path = tmp_path / name
    if other_name:
        path = tmp_path / f"link{path.suffix}"
        path.symlink_to(tmp_path / name)
    first.write(published(4)[0], None)
    with pytest.raises(DataError, match="another writer has the output") as caught:
        opened(path, query)
    assert caught.value.exit_code == 2
    first.write(published(5)[0], None)
    first.close()
    (tmp_path / f"link{path.suffix}").unlink(missing_ok=True)
    assert found(tmp_path) == list(range(6))


def test_the_lock_ends_with_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "r.mcap"
    lock = OutputLock(path)
    assert is_locked(lock_path(path))
    with pytest.raises(DataError):
        OutputLock(path)
    lock.release()
    lock.release()
    OutputLock(path).release()
    code = "import os,sys; from pathlib import Path; from avq.output_lock import OutputLock\n"
    code += "OutputLock(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=False)
    assert lock_path(path).exists() and not is_locked(lock_path(path))
    OutputLock(path).release()
    assert not lock_path(path).exists()


def test_a_line_that_a_kill_cut_off_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    run_once(path, "", 0, 2)
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size - 10)
    run_once(path, "", 2, 2)
    lines = path.read_bytes().splitlines()
    assert len(lines) == 4 and [json.loads(lines[index])["seq"] for index in (0, 2, 3)] == [0, 2, 3]


def test_a_step_of_the_clock_begins_another_file_without_rotation_too(tmp_path: Path) -> None:
    sink = opened(tmp_path / "r.mcap", "?image=none")
    sink.write(published(0)[0], None)
    sink.write_event({"kind": "clock_stepped", "t_ns": 1, "step_s": -7e7})  # type: ignore[attr-defined]
    sink.write(published(1)[0], None)
    sink.close()
    assert [standard_reader(path) for path in sorted(tmp_path.glob("*.mcap"), key=lambda p: len(p.name))] == [
        [0],
        [1],
    ]


def test_a_log_counts_no_files_of_a_longer_name_as_its_own(tmp_path: Path) -> None:
    other = tmp_path / "front-left-20261127T101530.250Z.mcap"
    other.write_bytes(bytes(3_000_000))
    log = RotatingLog(tmp_path / "front.mcap", dict, Limits(file_bytes=10_000, keep_bytes=20_000))
    log.close()
    assert other.exists() and log.deleted == 0


@pytest.mark.parametrize(("name", "query"), FORMS)
def test_files_of_a_run_are_not_for_everybody(tmp_path: Path, name: str, query: str) -> None:
    before = os.umask(0)
    try:
        run_once(tmp_path / name, query, 0)
    finally:
        os.umask(before)
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_all_locks_are_checked_before_an_output_is_opened(tmp_path: Path) -> None:
    held = opened(tmp_path / "r.mcap", "?image=none")
    addresses = [f"{tmp_path / 'new.jsonl'}", f"{tmp_path / 'r.mcap'}?image=none"]
    with pytest.raises(DataError, match="another writer"):
        open_sinks(addresses, sink_types(), LABELS)
    held.close()
    assert [path.name for path in tmp_path.iterdir()] == ["r.mcap"]


def test_two_sinks_of_one_configuration_do_not_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    with pytest.raises(DataError, match="another sink of this configuration"):
        open_sinks([str(path), f"jsonl:{tmp_path}/./o.jsonl"], sink_types(), LABELS)
    assert not is_locked(path), "the first was closed"


@pytest.mark.slow
def test_every_life_of_a_killed_recorder_is_kept(tmp_path: Path) -> None:
    rng = random.Random(3)
    lives = []
    for _ in range(LIVES):
        kill = kill_once(tmp_path, rng)
        assert (kill.missing, kill.unlike) == (0, False)
        lives.append((newest_log(tmp_path), standard_reader(newest_log(tmp_path))))
    assert len({path for path, _ in lives}) == LIVES
    assert all(standard_reader(path) == seqs and seqs for path, seqs in lives), "later lives left it alone"
