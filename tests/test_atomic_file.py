"""Files that appear whole or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from avq.atomic_file import atomic_replace, atomic_write, atomic_write_path, stale_temporaries
from avq.errors import DataError


def test_a_file_takes_its_place_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with atomic_write_path(path) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".json", "codecs look at the suffix"
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="on purpose"), atomic_replace(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise ValueError("on purpose")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none/a\.json cannot be written") as caught:
        atomic_write(tmp_path / "none" / "a.json", b"")
    assert caught.value.seen == "No such file or directory"
    with pytest.raises(OSError, match="No such file"), atomic_replace(tmp_path / "never.json"):
        pass  # nothing was written temporary


def test_what_a_killed_writer_left_can_be_listed(tmp_path: Path) -> None:
    path = tmp_path / "counts [1].avqcal"
    code = (
        "import os, sys; from pathlib import Path; from avq.atomic_file import atomic_replace\n"
        "with atomic_replace(Path(sys.argv[1])) as new:\n    new.write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    (left,) = stale_temporaries(path)
    assert left.read_text() == "half" and not path.exists()
    assert list(stale_temporaries(tmp_path / "other.avqcal")) == []
