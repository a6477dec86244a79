"""Picture sets: found, identified by digest, split into calibration and held-out, and read."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

from avq.builder.pictures.image_files import damage
from avq.builder.pictures.variety import NO_PICTURES, Variety, require_distinct, variety
from avq.errors import DataError, nearest
from avq.picture_files import bit_depth_of, decode_grey, decode_picture, largest_value
from avq.progress import Reporter, Silent
from avq.sources.files import SUFFIXES
from avq.types import U8, Recipe

#: Picture formats that not every OpenCV reads.
_FOREIGN_SUFFIXES = (".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".dng", ".exr")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".m4v", ".webm", ".mcap", ".bag")
INDEX_NAME = "index.csv"
_LISTED = 5


@dataclass(frozen=True, slots=True)
class Item:
    """One picture file.

    Attributes:
        sha256: of its bytes, lower-case hex.
        bit_depth: bits of the values of a 16-bit file, found over its whole set.
    """

    path: Path
    sha256: str
    bit_depth: int = 16


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Pictures of a folder, each content once.

    Attributes:
        folder: of the files.
        items: in path order when opened, in digest order after ``split`` and ``shard``.
        messages: remarks on the set, one sentence each.
    """

    folder: Path
    items: tuple[Item, ...]
    messages: tuple[str, ...] = ()


def open_set(folder: Path, report: Reporter | None = None, *, copies: bool = False) -> CalibrationSet:
    """Find and digest the pictures of ``folder``: those of its index.csv, or all below it.

    Every file is read once and checked to be whole; nothing is decoded yet. ``copies`` keeps files of equal
    content, each of which may have labels of its own; calibration counts a content once.

    Raises:
        DataError: no such folder, no pictures, damaged pictures, or digests that differ from index.csv.
    """
    folder = Path(folder)
    _check_folder(folder)
    report = report or Silent()
    index = folder / INDEX_NAME
    listed = _read_index(index) if index.is_file() else None
    paths = sorted(listed) if listed is not None else _pictures_below(folder)
    if not paths:
        raise _no_pictures(folder)
    items, deep = _digest(report.track(paths, "pictures", len(paths)))
    if listed is not None:
        _check_digests(items, listed, index)
    unique = tuple(items) if copies else _unique(items)
    remarks = [*_remarks(folder, items, unique, listed), *deep]
    return CalibrationSet(folder, unique, tuple(remarks))


def open_calibrating_set(folder: Path, report: Reporter) -> CalibrationSet:
    """``open_set`` for commands that only calibrate; messages are reported.

    Raises DataError as ``open_set`` does, and for fewer than 8 distinct pictures.
    """
    pictures = open_set(folder, report)
    found = variety_of(pictures)
    report_remarks(pictures, report, found)
    require_distinct(pictures.folder, found)
    return pictures


def report_remarks(pictures: CalibrationSet, report: Reporter, found: Variety = NO_PICTURES) -> None:
    """Report the remarks on a set, and how many distinct pictures it has if some are not."""
    for message in (*pictures.messages, found.summary()):
        if message:
            report.message(message)


def split(pictures: CalibrationSet) -> tuple[CalibrationSet, CalibrationSet]:
    """Split into (calibration, held out): the last 20 % by digest is held out, at least one picture.

    A set of one picture is both, with a message.
    """
    ordered = _by_digest(pictures.items)
    if len(ordered) == 1:
        warning = f"{pictures.folder} holds one picture: it calibrates and verifies, which proves little"
        both = CalibrationSet(pictures.folder, ordered, (*pictures.messages, warning))
        return both, both
    count = len(ordered) - max(1, len(ordered) // 5)
    return (
        CalibrationSet(pictures.folder, ordered[:count], pictures.messages),
        CalibrationSet(pictures.folder, ordered[count:], pictures.messages),
    )


def shard(items: Sequence[Item], index: int, count: int) -> tuple[Item, ...]:
    """Return every ``count``-th picture in digest order, starting with ``index`` (from 0)."""
    return _by_digest(items)[index::count]


def read_picture(item: Item) -> U8:
    """Read the picture as (H, W, 3) uint8 BGR, with its EXIF orientation applied.

    Raises DataError when it cannot be decoded or is no longer the file that was digested.
    """
    data = _file_bytes(item.path)
    if hashlib.sha256(data).hexdigest() != item.sha256:
        raise DataError(
            f"{item.path} has changed since the set was opened",
            seen="another SHA-256",
            fix="do not change the pictures while avq reads them; start again",
        )
    try:
        return decode_picture(data, bit_depth=item.bit_depth)
    except ValueError as error:
        raise _undecodable(item.path, damage(data) or str(error)) from None


#: Pictures of a set that are compared with each other.
_COMPARED = 1000


def variety_of(pictures: CalibrationSet) -> Variety:
    """Count the distinct pictures; of more than 1000, in an even selection."""
    items = pictures.items[:: max(1, -(-len(pictures.items) // _COMPARED))]
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        return variety(threads.map(_read_grey, items))


def _read_grey(item: Item) -> U8:
    try:
        return decode_grey(_file_bytes(item.path), bit_depth=item.bit_depth)
    except ValueError as error:
        raise _undecodable(item.path, str(error)) from None


def refuse_unreadable(items: Sequence[Item]) -> None:
    """Decode everything and raise one DataError that lists all that cannot be read, if any."""
    unreadable: list[tuple[Path, str]] = []
    for item in items:
        try:
            read_picture(item)
        except DataError as error:
            unreadable.append((item.path, error.seen))
    if unreadable:
        raise _damaged(unreadable, len(items))


def _by_digest(items: Sequence[Item]) -> tuple[Item, ...]:
    return tuple(sorted(items, key=lambda item: item.sha256))


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        raise DataError(f"there is no folder {folder}", seen="nothing at that path", fix="check --data")
    if not folder.is_dir():
        raise DataError(f"{folder} is a file, not a folder", seen=folder.name, fix="give --data its folder")


def _pictures_below(folder: Path) -> list[Path]:
    return _files_below(folder, lambda path: path.suffix.lower() in SUFFIXES)


def _files_below(folder: Path, accepts: Callable[[Path], bool]) -> list[Path]:
    paths = (path for path in folder.rglob("*") if accepts(path) and path.is_file())
    return sorted(path for path in paths if not _hidden(path.relative_to(folder)))


def _hidden(path: Path) -> bool:
    """Whether a path is hidden: thumbnails and ``._`` files of macOS are not the user's pictures."""
    return any(part.startswith(".") for part in path.parts)


def _no_pictures(folder: Path) -> DataError:
    videos = _files_below(folder, lambda path: path.suffix.lower() in VIDEO_SUFFIXES)
    what = f"{folder} holds no pictures"
    if videos:
        return DataError(
            what,
            seen=f"{len(videos)} videos or logs, such as {videos[0].name}",
            fix=f"write frames as pictures first: ffmpeg -i {videos[0].name} -vf fps=1 frames/%05d.png",
        )
    others = _files_below(folder, lambda _: True)
    seen = f"{len(others)} other files, such as {others[0].name}" if others else "an empty folder"
    return DataError(what, seen=seen, fix=f"put {', '.join(SUFFIXES)} files into it")


def _read_index(index: Path) -> dict[Path, str]:
    """Read path -> digest from index.csv."""
    try:
        with index.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames or (), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{index} cannot be read", seen=str(error), fix="save it as UTF-8 CSV") from None
    for name in ("file", "sha256"):
        if name not in columns:
            raise DataError(
                f"{index} has no column '{name}'", seen=", ".join(columns), fix=nearest(name, columns)
            )
    return {_indexed(index, row["file"], line): _hex(row["sha256"]) for line, row in enumerate(rows, start=2)}


def _hex(digest: str | None) -> str:
    return (digest or "").strip().lower()


def _indexed(index: Path, name: str | None, line: int) -> Path:
    folder = index.parent
    path = folder / (name or "").strip()
    outside = folder.resolve() not in path.resolve().parents
    if not name or outside or not path.is_file():
        raise DataError(
            f"{index}:{line} names no file of the set",
            seen=f"'{name}'" + (", outside the folder" if outside and name else ""),
            fix="give paths of existing files relative to index.csv",
        )
    return path


def _digest(paths: Iterable[Path]) -> tuple[list[Item], list[str]]:
    """The pictures, and a line on 16-bit files if there are any."""
    items, damaged, largest = [], [], []
    for path in paths:
        try:
            data = _file_bytes(path)
        except DataError as error:
            damaged.append((path, error.seen))
            continue
        items.append(Item(path, hashlib.sha256(data).hexdigest()))
        if why := damage(data):
            damaged.append((path, why))
        elif (value := largest_value(data)) is not None:
            largest.append(value)
    if damaged:
        raise _damaged(damaged, len({item.path for item in items} | {path for path, _ in damaged}))
    if not largest:
        return items, []
    bits = bit_depth_of(max(largest))
    files = f"{len(largest)} of {len(items)} pictures are 16-bit files"
    line = f"{files}, read as {bits}-bit values (largest {max(largest)})"
    return [replace(item, bit_depth=bits) for item in items], [line]


def _check_digests(items: Sequence[Item], listed: dict[Path, str], index: Path) -> None:
    changed = [item for item in items if listed[item.path] != item.sha256]
    if changed:
        first = changed[0]
        raise DataError(
            f"{len(changed)} of {len(items)} pictures differ from their digests in {index}, first {first.path}",
            seen=f"sha256 {first.sha256}, index.csv has {listed[first.path] or 'none'}",
            fix="fetch the original pictures again, or write their new digests into index.csv",
        )


def _unique(items: Sequence[Item]) -> tuple[Item, ...]:
    first: dict[str, Item] = {}
    for item in items:
        first.setdefault(item.sha256, item)
    return tuple(first.values())


def _remarks(
    folder: Path, items: Sequence[Item], unique: Sequence[Item], listed: dict[Path, str] | None
) -> Iterator[str]:
    copies = len(items) - len(unique)
    if copies:
        yield f"{copies} of {len(items)} pictures in {folder} are copies of others and count once"
    if listed is not None:
        unlisted = len(set(_pictures_below(folder)) - set(listed))
        if unlisted:
            yield f"{unlisted} pictures in {folder} are not in {INDEX_NAME} and are left out"
    foreign = _files_below(folder, lambda path: path.suffix.lower() in _FOREIGN_SUFFIXES)
    if foreign:
        yield f"{len(foreign)} files in {folder} are of kinds that avq does not read, such as {foreign[0].name}"


def _file_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        seen = error.strerror or str(error)
        raise DataError(f"{path} cannot be read", seen=seen, fix="check its permissions") from None


def _undecodable(path: Path, seen: str) -> DataError:
    return DataError(
        f"{path} is not a readable picture", seen=seen, fix="replace it or take it out of the set"
    )


def _damaged(files: Sequence[tuple[Path, str]], total: int) -> DataError:
    listed = "; ".join(f"{path}: {why}" for path, why in files[:_LISTED])
    more = f"; and {len(files) - _LISTED} more" if len(files) > _LISTED else ""
    return DataError(
        f"{len(files)} of {total} pictures cannot be read",
        seen=listed + more,
        fix="replace them or take them out of the set",
    )


# The pictures of one build.

# Enough to distinguish one preprocessing from another; more would only take time.
SAMPLES = 32


class Samples(Sequence[U8]):
    """Pictures of some items, each read when it is taken: 32 large ones together would fill the memory.

    Args:
        items: at most SAMPLES of them are kept, evenly spread.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items[:: max(1, len(items) // SAMPLES)][:SAMPLES]

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> U8: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[U8]: ...
    def __getitem__(self, index: int | slice) -> U8 | Sequence[U8]:
        if isinstance(index, slice):
            return [read_picture(item) for item in self.items[index]]
        return read_picture(self.items[index])


@dataclass(frozen=True)
class Pictures:
    """A picture set, split once.

    Attributes:
        calibration: for the ranges.
        held_out: for plans, engines and the gate; the last 20 % by digest.
        variety: distinct pictures of both.
    """

    calibration: CalibrationSet
    held_out: CalibrationSet
    variety: Variety = NO_PICTURES

    def require_distinct(self) -> None:
        """Raise DataError when there are pictures, but too few distinct ones to calibrate on."""
        if self.variety.pictures:
            require_distinct(self.calibration.folder, self.variety)

    def samples(self) -> Samples:
        """Return up to SAMPLES calibration pictures, (H, W, 3) uint8 BGR, evenly spread over the set."""
        return Samples(self.calibration.items)


def open_pictures(recipe: Recipe, report: Reporter) -> Pictures:
    """Digest and split the pictures of ``recipe.data``; DataError when there are none or some are damaged.

    Without ``recipe.data`` both sets are empty.
    """
    if recipe.data is None:  # strategies that import need none
        nothing = CalibrationSet(Path(), ())
        return Pictures(nothing, nothing)
    every = open_set(recipe.data, report)
    found = variety_of(every)
    calibration, held_out = split(every)
    report_remarks(calibration, report, found)
    return Pictures(calibration, held_out, found)
