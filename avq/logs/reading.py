"""Open a log of either kind, and name what is no log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from mcap.records import Attachment

from avq.errors import DataError
from avq.logs.rosbag2 import Rosbag2, storage_files
from avq.recording import LogReader, Record

#: First bytes of files that people mistake for logs avq reads -> (what it is, what to do).
_FOREIGN: Mapping[bytes, tuple[str, str]] = {
    b"#ROSBAG V": ("a ROS 1 bag", "convert it first: rosbags-convert --src FILE.bag --dst FOLDER"),
    b"SQLite format 3": ("an SQLite file", "name the folder of the rosbag2 recording that it is in"),
    b"RRF": ("a Rerun recording", "export it as MCAP first"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "unpack it first: zstd -d FILE"),
    b"PK\x03\x04": ("a zip archive", "unpack it first"),
}


class Log(Protocol):
    """A log that is iterated once; ``damage`` is "" or says what could not be read, after the iteration."""

    path: Path
    damage: str
    messages: int
    profile: str
    metadata: dict[str, dict[str, str]]

    @property
    def kind(self) -> str: ...

    @property
    def attachments(self) -> Sequence[Attachment]: ...

    def __iter__(self) -> Iterator[Record]: ...

    def close(self) -> None: ...


class McapLog(LogReader):
    """An MCAP file."""

    kind = "mcap"


def open_log(path: Path, *, check_data: bool = False) -> Log:
    """An MCAP file or a rosbag2 folder.

    Args:
        path: the file or folder.
        check_data: check every sum that the writer left, not only those of the chunks.

    Raises:
        DataError: it does not exist, or it is something else; what it is is named where that can be told.
    """
    if path.is_dir():
        if not storage_files(path):
            raise DataError(
                f"{path} is a folder without a recording",
                seen=", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "an empty folder",
                fix="a rosbag2 folder holds .mcap or .db3 files",
            )
        return Rosbag2(path)
    _refuse_foreign(path)
    return McapLog(path, check_data=check_data)


def _refuse_foreign(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise DataError(f"{path} cannot be read", seen=str(error), fix="check the path") from None
    for magic, (what, fix) in _FOREIGN.items():
        if start.startswith(magic):
            raise DataError(f"{path} is {what}, not an MCAP log", seen=repr(start[:16]), fix=fix)
    if not start:
        raise DataError(
            f"{path} is empty", seen="0 bytes", fix="its writer was killed before its first byte was kept"
        )
