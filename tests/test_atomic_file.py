"""Files that appear whole or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from avq.atomic_file import beside, left_beside, write_whole, written_whole
from avq.errors import DataError


def test_a_file_takes_its_place_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with written_whole(path) as aside:
        assert aside.parent == tmp_path and aside.suffix == ".json", "codecs look at the suffix"
        aside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="on purpose"), beside(path) as aside:
        aside.write_text("half")
        raise ValueError("on purpose")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none/a\.json cannot be written") as caught:
        write_whole(tmp_path / "none" / "a.json", b"")
    assert caught.value.seen == "No such file or directory"
    with pytest.raises(OSError, match="No such file"), beside(tmp_path / "never.json"):
        pass  # nothing was written aside


def test_what_a_killed_writer_left_is_found(tmp_path: Path) -> None:
    path = tmp_path / "counts [1].avqcal"
    code = (
        "import os, sys; from pathlib import Path; from avq.whole_file import beside\n"
        "with beside(Path(sys.argv[1])) as aside:\n    aside.write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    (left,) = left_beside(path)
    assert left.read_text() == "half" and not path.exists()
    assert list(left_beside(tmp_path / "other.avqcal")) == []
