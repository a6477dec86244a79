"""Writers leave alone what is no file, replace whole files only, and remove what killed ones left."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from avq.atomic_file import atomic_write, end_staging, new_staging_folder
from avq.bundle import staging_folder
from avq.errors import AvqError
from avq.logs.convert import convert
from avq.logs.cut import Part, cut, merge
from avq.plugins import PluginHost
from avq.progress import Silent
from avq.render.pictures import write_clip
from tests.conftest import ROOT
from tests.logs.log_kit import write_drive

Write = Callable[[Path, Path], object]
HANG_S = 20.0


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drive") / "drive.mcap"
    write_drive(path, range(3), image="none")
    return path


def _cut(drive: Path, output: Path) -> object:
    return cut(drive, output, Part(), host=PluginHost(), report=Silent())


def _merge(drive: Path, output: Path) -> object:
    copy = drive.with_name("copy.mcap")
    copy.write_bytes(drive.read_bytes())
    return merge([drive, copy], output, Silent())


def _convert(drive: Path, output: Path) -> object:
    return convert(drive, output, host=PluginHost(), report=Silent())


def _clip(drive: Path, output: Path) -> object:
    return write_clip(output, [np.zeros((48, 64, 3), np.uint8)] * 2, 5.0)


def _text(drive: Path, output: Path) -> None:
    atomic_write(output, "text")


def _bundle(drive: Path, output: Path) -> object:
    return staging_folder(output)


WRITERS: list[tuple[str, Write]] = [
    ("cut.mcap", _cut),
    ("merge.mcap", _merge),
    ("convert.mcap", _convert),
    ("bag", _convert),
    ("clip.webm", _clip),
    ("report.html", _text),
    ("bundle", _bundle),
]


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/null")


def link_to_an_open_file(path: Path) -> None:
    path.symlink_to("/proc/self/fd/1")


def link_to_a_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to(path.with_name("pipe"))


@pytest.mark.parametrize(("name", "write"), WRITERS, ids=[name for name, _ in WRITERS])
@pytest.mark.parametrize("place", [fifo, listening, link_to_a_device, link_to_an_open_file, link_to_a_fifo])
def test_nothing_is_written_over_what_is_no_file(
    drive: Path, tmp_path: Path, name: str, write: Write, place: Callable[[Path], None]
) -> None:
    output = tmp_path / name
    place(output)
    before = {path.name: stat.S_IFMT(path.lstat().st_mode) for path in tmp_path.iterdir()}
    raised: list[BaseException] = []

    def run() -> None:
        try:
            write(drive, output)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(HANG_S)
    assert not thread.is_alive() and isinstance(raised[0], AvqError) and name in str(raised[0])
    assert {path.name: stat.S_IFMT(path.lstat().st_mode) for path in tmp_path.iterdir()} == before


KILLED = """
import os, sys
from pathlib import Path
from avq.logs.writing import McapOutput
from avq.logs.ros import Rosbag2Output
from avq.bundle import staging_folder
path = Path(sys.argv[1])
out = McapOutput(path / "out.mcap")
(staging_folder(path / "bundle") / "model.onnx").write_bytes(bytes(100))
os.kill(os.getpid(), 9)
"""


def test_what_killed_writers_left_is_removed_by_the_next_and_what_living_ones_use_is_not(
    drive: Path, tmp_path: Path
) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, check=False)
    assert done.returncode == -9 and len(list(tmp_path.iterdir())) == 2
    in_use = new_staging_folder(tmp_path / "bundle")
    other = staging_folder(tmp_path / "bundle")
    _cut(drive, tmp_path / "out.mcap")
    assert set(tmp_path.iterdir()) == {in_use, other, tmp_path / "out.mcap"}
    end_staging(other)
    end_staging(in_use)
    last = staging_folder(tmp_path / "bundle")
    assert set(tmp_path.iterdir()) == {last, tmp_path / "out.mcap"}
    end_staging(last)


def test_a_cut_is_read_by_its_owner_and_group_only(drive: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        _cut(drive, tmp_path / "out.mcap")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out.mcap").stat().st_mode) == 0o640
