"""Sinks asked to write where no file can be: told at once, nothing waited for, nothing that was there destroyed."""

from __future__ import annotations

import json
import os
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from avq.atomic_file import atomic_write
from avq.daemon import sink_types
from avq.errors import AvqError
from avq.sinks import open_sink
from tests.daemon.daemon_kit import LABELS
from tests.recording.recording_kit import published

PATIENCE_S = 20.0
NOBODY = 65534


def in_time(action: Callable[[], object]) -> BaseException | None:
    """What ``action`` raised; a failure when it has not come back."""
    ended: list[BaseException | None] = []

    def run() -> None:
        try:
            action()
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert ended, "it waits"
    return ended[0]


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "place.x")
    return folder / "place.x"


def directory(folder: Path) -> Path:
    (folder / "place.x").mkdir()
    return folder / "place.x"


def device(folder: Path) -> Path:
    return Path("/dev/full")


def listening(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "place.x"))
    return folder / "place.x"


def below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file" / "place.x"


def no_folder(folder: Path) -> Path:
    return folder / "gone" / "place.x"


LINES = [directory, listening, below_a_file, no_folder]
RECORDS = [fifo, directory, listening, below_a_file, no_folder]
REFUSED = [
    *(("jsonl:{}", place) for place in LINES),
    *(("mcap:{}?image=none", place) for place in RECORDS),
    *(("mcap:{}?image=none&rotate_s=1", place) for place in (below_a_file, no_folder)),
    *(("mqtt://127.0.0.1:9/t?spool={}", place) for place in (fifo, listening, device, below_a_file)),
    *(("mqtt://u@127.0.0.1:9/t?spool=S&password_file={}", place) for place in (fifo, directory, device)),
    *(("mqtts://127.0.0.1:9/t?spool=S&ca_file={}", place) for place in (fifo, directory, device)),
]


@pytest.mark.parametrize(("uri", "place"), REFUSED, ids=lambda part: getattr(part, "__name__", part))
def test_a_place_that_cannot_be_written_is_told_and_left_alone(tmp_path: Path, uri: Any, place: Any) -> None:
    if uri.startswith("mqtt"):
        pytest.importorskip("paho.mqtt", reason='paho-mqtt is not installed (pip install "avq[mqtt]")')
    path = place(tmp_path)
    kind = stat.S_IFMT(path.stat().st_mode) if path.exists() else 0
    address = uri.format(path).replace("spool=S", f"spool={tmp_path / 'spool'}")
    error = in_time(lambda: open_sink(address, sink_types(), labels=LABELS))
    assert isinstance(error, AvqError), error
    assert str(path.with_suffix("")) in str(error) and error.fix
    assert kind == (stat.S_IFMT(path.stat().st_mode) if path.exists() else 0)


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that this process may read and enter, root or not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(NOBODY)
        try:
            yield Path(folder)
        finally:
            if root:
                os.seteuid(0)


@pytest.mark.parametrize("uri", ["jsonl:{}/lines", "{}/log.mcap?image=none", "{}/log.mcap?rotate_s=1"])
def test_a_folder_that_may_only_be_read_is_told(read_only: Path, uri: str) -> None:
    error = in_time(lambda: open_sink(uri.format(read_only), sink_types(), labels=LABELS))
    assert isinstance(error, AvqError) and str(read_only) in str(error)
    assert "Permission denied" in error.seen


def test_a_standard_output_that_is_closed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    error = in_time(lambda: open_sink("-", sink_types(), labels=LABELS))
    assert isinstance(error, AvqError) and "standard output" in str(error)


def test_readers_of_a_fifo_come_late_leave_and_come_back(tmp_path: Path) -> None:
    path = fifo(tmp_path)
    sink = open_sink(f"jsonl:{path}", sink_types(), labels=LABELS)
    sink.write(published(1)[0], None)
    for seq in (2, 3):
        with path.open("rb", buffering=0) as reader:
            sink.write(published(seq)[0], None)
            lines = reader.read(65536).splitlines()
        assert json.loads(lines[-1])["seq"] == seq
    sink.write(published(4)[0], None)
    with path.open("rb") as reader:
        sink.close()
        assert [json.loads(line)["seq"] for line in reader] == [4], "and it hears the end"


@pytest.mark.parametrize("place", [fifo, listening])
def test_no_file_written_whole_takes_the_place_of_what_is_no_file(tmp_path: Path, place: Any) -> None:
    path = place(tmp_path)
    assert isinstance(in_time(lambda: atomic_write(path, "text")), AvqError)
    assert not path.is_file()
    assert list(tmp_path.iterdir()) == [path]


def test_what_lies_in_a_spool_and_is_no_message_is_left_alone(tmp_path: Path) -> None:
    from avq.sinks.spool import Spool

    os.mkfifo(tmp_path / "0000000000000007.json")
    (tmp_path / "0000000000000008.json").mkdir()
    (tmp_path / "0000000000000009.new").mkdir()
    assert in_time(lambda: Spool(tmp_path, 10).add(b"alert")) is None
    assert (tmp_path / "0000000000000001.json").read_bytes() == b"alert"


def test_a_rotating_log_counts_no_folder_as_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "log-20261127T101530.250Z.mcap").mkdir()
    uri = f"{tmp_path / 'log.mcap'}?image=none&rotate_mb=1&keep_mb=1"
    sink = open_sink(uri, sink_types(), labels=LABELS)
    sink.write(published(1)[0], None)
    sink.close()
    assert len(list(tmp_path.glob("log-*.mcap"))) == 2
