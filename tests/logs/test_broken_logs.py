"""Killed, truncated, garbage and foreign logs: recovered to the last whole chunk or refused, never a traceback."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avq.cli import cli
from avq.errors import AvqError
from avq.logs.cut import Part, cut, merge
from avq.logs.info import info, verify
from avq.plugins import PluginHost
from avq.progress import Silent
from tests.conftest import ROOT
from tests.logs.log_kit import records, write_drive

QUIET = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
#: Where to hurt a file (share of its length), and how.
ACCIDENTS = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True), st.sampled_from(["cut", "flip", "garbage", "zeros", "remove"])
    ),
    min_size=1,
    max_size=3,
)


def hurt(data: bytes, accidents: list[tuple[float, str]]) -> bytes:
    for share, kind in accidents:
        at = int(share * len(data))
        if kind == "cut":
            data = data[:at]
        elif kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]
        elif kind == "garbage":
            data = data[:at] + bytes(range(7, 250)) + data[at:]
        elif kind == "zeros":
            data = data[:at] + bytes(len(data[at : at + 5000])) + data[at + 5000 :]
        else:
            data = data[:at] + data[at + 300 :]
    return data


def run_all(path: Path, folder: Path) -> dict | None:  # type: ignore[type-arg]
    """Every reading command; None when the log was refused. Anything but an answer or an AvqError fails the test."""
    for tool in (info, verify):
        try:
            tool(path, Silent())
        except AvqError as error:
            assert error.what and error.fix
    try:
        return {**cut(path, folder / "out.mcap", Part(), host=PluginHost(), report=Silent())}
    except AvqError as error:
        assert error.what and error.fix and not (folder / "out.mcap").exists()
        return None
    finally:
        assert not list(folder.glob("*.partial*"))


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drive") / "drive.mcap"
    write_drive(path, range(12), image="jpeg", events={5: "alert_raised"})
    return path


@pytest.fixture(scope="module")
def bag(drive: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("rosbags", reason="rosbags is not installed")
    folder = tmp_path_factory.mktemp("bag") / "bag"
    arguments = ["log", "convert", str(drive), "-o", str(folder), "--storage", "sqlite3"]
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    return folder


@pytest.mark.slow
@QUIET
@given(accidents=ACCIDENTS)
def test_whatever_happened_to_an_mcap_file_what_is_recovered_was_recorded(
    drive: Path, tmp_path_factory: pytest.TempPathFactory, accidents: Any
) -> None:
    folder = tmp_path_factory.mktemp("hurt")
    (folder / "hurt.mcap").write_bytes(hurt(drive.read_bytes(), accidents))
    answer = run_all(folder / "hurt.mcap", folder)
    if answer is not None:
        told = {(r.topic, r.log_time_ns, r.data) for r in records(folder / "out.mcap")}
        assert told <= {(r.topic, r.log_time_ns, r.data) for r in records(drive)}
        assert verify(folder / "out.mcap", Silent())["whole"]
    shutil.rmtree(folder)


@pytest.mark.slow
@settings(QUIET, max_examples=50)
@given(accidents=ACCIDENTS)
def test_a_hurt_database_is_read_as_far_as_it_goes_or_refused(
    bag: Any, tmp_path_factory: pytest.TempPathFactory, accidents: Any
) -> None:
    folder = tmp_path_factory.mktemp("hurt")
    (folder / "bag").mkdir()
    (folder / "bag" / "bag.db3").write_bytes(hurt((bag / "bag.db3").read_bytes(), accidents))
    run_all(folder / "bag", folder)
    shutil.rmtree(folder)


def test_cut_off_at_every_chunk_all_whole_chunks_are_recovered(drive: Path, tmp_path: Path) -> None:
    data = drive.read_bytes()
    whole = [(r.topic, r.data) for r in records(drive)]
    counts = []
    for cut_at in [*(len(data) * part // 12 for part in range(1, 12)), len(data) - 1]:
        (tmp_path / "cut.mcap").write_bytes(data[:cut_at])
        answer = run_all(tmp_path / "cut.mcap", tmp_path)
        counts.append(answer["messages"] if answer else 0)
        if answer:
            assert [(r.topic, r.data) for r in records(tmp_path / "out.mcap")] == whole[: counts[-1]]
            (tmp_path / "out.mcap").unlink()
    assert counts == sorted(counts) and counts[-1] >= 0.8 * len(whole) and counts[3] > 0


def test_every_flipped_byte_of_a_written_log_is_found(drive: Path, tmp_path: Path) -> None:
    """Logs that avq log writes carry sums over everything."""
    cut(drive, tmp_path / "whole.mcap", Part(end_s=0.25), host=PluginHost(), report=Silent())
    data = (tmp_path / "whole.mcap").read_bytes()
    path = tmp_path / "flipped.mcap"
    missed = []
    for at in range(0, len(data), max(1, len(data) // 400)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        try:
            if verify(path, Silent())["whole"]:
                missed.append(at)
        except AvqError:
            pass
    assert missed == []


def test_a_killed_writer_leaves_a_log_that_cut_makes_whole(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path; import itertools\n"
        "from tests.logs.log_kit import write_drive; write_drive(Path(sys.argv[1]), itertools.count(), image='jpeg')"
    )
    path = tmp_path / "killed.mcap"
    process = subprocess.Popen([sys.executable, "-c", code, str(path), str(ROOT)])
    while not (path.exists() and path.stat().st_size > 500_000):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    told = json.loads(CliRunner().invoke(cli, ["log", "verify", str(path), "--json"]).stdout)
    assert not told["whole"] and "truncated" in told["findings"][0]
    result = CliRunner().invoke(cli, ["log", "cut", str(path), "-o", str(tmp_path / "whole.mcap"), "--json"])
    assert result.exit_code == 0 and "truncated" in result.stderr
    assert verify(tmp_path / "whole.mcap", Silent())["whole"]
    assert json.loads(result.stdout)["messages"] == told["messages"] > 30


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.mcap", b"", "is empty"),
        ("old.bag", b"#ROSBAG V2.0\n" + bytes(99), "a ROS 1 bag"),
        ("lonely.db3", b"SQLite format 3\0" + bytes(99), "an SQLite file"),
        ("text.mcap", b"hello, this is no log at all", "not an MCAP file"),
        ("picture.mcap", b"\xff\xd8\xff\xe0" + bytes(99), "not an MCAP file"),
        ("magic.mcap", b"\x89MCAP0\r\n", "no complete message"),
        ("packed.mcap", b"\x28\xb5\x2f\xfd" + bytes(99), "compressed with zstd"),
    ],
)
def test_what_is_no_log_is_named(tmp_path: Path, name: str, content: Any, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AvqError) as caught:
        cut(tmp_path / name, tmp_path / "out.mcap", Part(), host=PluginHost(), report=Silent())
    assert said in caught.value.what and caught.value.fix
    assert not (tmp_path / "out.mcap").exists()


def test_missing_files_and_folders_without_a_recording_are_named(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "none.mcap", "cannot be read"), (tmp_path, "without a recording")):
        with pytest.raises(AvqError) as caught:
            info(path, Silent())
        assert said in caught.value.what


def test_a_damaged_log_merges_with_what_is_left_of_it(drive: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.mcap").write_bytes(drive.read_bytes()[: drive.stat().st_size // 2])
    answer = merge([tmp_path / "cut.mcap", drive], tmp_path / "out.mcap", Silent())
    assert list(answer["damage"]) == [str(tmp_path / "cut.mcap")]
    assert len(records(tmp_path / "out.mcap")) == len(records(drive))
