"""Calibration sets: which pictures count, which are refused, and how the set is split."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from avq.builder.pictures.dataset import CalibrationSet, open_set, read_picture, shard, split
from avq.errors import DataError
from tests.builder.calibrate.calibration_case import write_pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "set", 10)


def write_index(folder: Path, rows: list[tuple[str, str]]) -> None:
    lines = ["file,sha256,scene,source,licence", *(f"{name},{digest},rain,here,CC0" for name, digest in rows)]
    (folder / "index.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_pictures_are_found_below_the_folder_in_path_order(folder: Path) -> None:
    (folder / "deeper" / "still").mkdir(parents=True)
    shutil.move(folder / "003.png", folder / "deeper" / "still" / "night.PNG")
    cv2.imwrite(str(folder / "a.bmp"), np.full((4, 4, 3), 9, np.uint8))
    cv2.imwrite(str(folder / "b.webp"), np.full((4, 4, 3), 90, np.uint8))
    (folder / "._000.jpg").write_bytes(b"metadata")
    (folder / "notes.txt").write_text("not a picture")
    pictures = open_set(folder)
    names = [item.path.relative_to(folder).as_posix() for item in pictures.items]
    assert names == sorted(names)
    assert len(names) == 12
    assert "deeper/still/night.PNG" in names
    assert all(item.sha256 == sha256(item.path) for item in pictures.items)


def test_pictures_of_kinds_that_are_not_read_are_told(folder: Path) -> None:
    (folder / "phone.HEIC").write_bytes(b"whatever")
    pictures = open_set(folder)
    assert len(pictures.items) == 10
    (message,) = pictures.messages
    assert message.startswith("1 files") and "phone.HEIC" in message


def test_copies_count_once_and_it_is_said(folder: Path) -> None:
    shutil.copy(folder / "001.png", folder / "copy.png")
    shutil.copy(folder / "001.png", folder / "another.png")
    pictures = open_set(folder)
    assert len(pictures.items) == 10
    assert "2 of 12 pictures" in pictures.messages[0]


def test_an_index_chooses_and_proves_the_pictures(folder: Path) -> None:
    write_index(folder, [(name, sha256(folder / name)) for name in ("004.jpg", "001.png")])
    pictures = open_set(folder)
    assert [item.path.name for item in pictures.items] == ["001.png", "004.jpg"]
    assert "8 pictures" in pictures.messages[0]


def test_a_digest_that_differs_names_the_file_and_both_digests(folder: Path) -> None:
    write_index(folder, [("001.png", sha256(folder / "001.png")), ("003.png", "ab" * 32)])
    with pytest.raises(DataError, match=r"003\.png") as error:
        open_set(folder)
    assert sha256(folder / "003.png") in error.value.seen
    assert "ab" * 32 in error.value.seen
    assert error.value.fix


@pytest.mark.parametrize("name", ["missing.png", "../outside.png", ""])
def test_an_index_that_names_no_file_of_the_set_says_the_line(folder: Path, name: str) -> None:
    shutil.copy(folder / "001.png", folder.parent / "outside.png")
    write_index(folder, [("001.png", sha256(folder / "001.png")), (name, "ab" * 32)])
    with pytest.raises(DataError, match=r"index\.csv:3"):
        open_set(folder)


def test_an_index_without_digests_is_refused(folder: Path) -> None:
    (folder / "index.csv").write_text("file,sha265\n001.png,x\n")
    with pytest.raises(DataError, match="no column 'sha256'") as error:
        open_set(folder)
    assert "sha265" in error.value.fix


def test_folders_that_hold_no_pictures_say_what_they_hold(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        open_set(tmp_path / "nowhere")
    file = tmp_path / "file.jpg"
    file.write_bytes(b"x")
    with pytest.raises(DataError, match="is a file"):
        open_set(file)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="no pictures") as error:
        open_set(empty)
    assert "empty folder" in error.value.seen
    (empty / "drive.mp4").write_bytes(b"x")
    with pytest.raises(DataError, match="no pictures") as error:
        open_set(empty)
    assert "drive.mp4" in error.value.seen
    assert "ffmpeg" in error.value.fix


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tiff", ".ppm"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.97])
def test_truncated_pictures_are_refused_whatever_their_format(
    tmp_path: Path, suffix: str, share: float
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8)
    whole = cv2.imencode(suffix, pixels)[1].tobytes()
    (tmp_path / f"good{suffix}").write_bytes(whole)
    assert len(open_set(tmp_path).items) == 1
    (tmp_path / f"bad{suffix}").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match="1 of 2 pictures cannot be read") as error:
        open_set(tmp_path)
    assert f"bad{suffix}" in error.value.seen


def test_a_thumbnail_does_not_hide_a_truncated_jpeg(tmp_path: Path) -> None:
    """Cameras put a whole JPEG, with its own end marker, into the header of the picture."""
    pixels = np.random.default_rng(1).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    whole = cv2.imencode(".jpg", pixels)[1].tobytes()
    thumbnail = cv2.imencode(".jpg", pixels[:8, :8])[1].tobytes()
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    camera = whole[:2] + segment + whole[2:]
    (tmp_path / "good.jpg").write_bytes(camera)
    assert open_set(tmp_path).items
    (tmp_path / "bad.jpg").write_bytes(camera[:-300])
    with pytest.raises(DataError, match="truncated"):
        raise_seen(lambda: open_set(tmp_path))


def raise_seen(call: Callable[[], object]) -> None:
    try:
        call()
    except DataError as error:
        raise DataError(error.seen) from None


def test_many_damaged_pictures_are_counted_and_the_first_listed(folder: Path) -> None:
    for path in sorted(folder.iterdir())[:8]:
        path.write_bytes(b"")
    with pytest.raises(DataError, match="8 of 10") as error:
        open_set(folder)
    assert error.value.seen.count("empty file") == 5
    assert error.value.seen.endswith("and 3 more")


def test_the_last_fifth_by_digest_is_held_out(folder: Path) -> None:
    calibration, held_out = split(open_set(folder))
    digests = [item.sha256 for item in (*calibration.items, *held_out.items)]
    assert digests == sorted(digests)
    assert (len(calibration.items), len(held_out.items)) == (8, 2)


@pytest.mark.parametrize(("count", "held"), [(2, 1), (3, 1), (4, 1), (5, 1), (9, 1), (10, 2)])
def test_small_sets_keep_a_picture_on_each_side(tmp_path: Path, count: int, held: int) -> None:
    calibration, held_out = split(open_set(write_pictures(tmp_path, count)))
    assert (len(calibration.items), len(held_out.items)) == (count - held, held)


def test_one_picture_is_both_sides_with_a_warning(tmp_path: Path) -> None:
    calibration, held_out = split(open_set(write_pictures(tmp_path, 1)))
    assert calibration.items == held_out.items
    assert "one picture" in calibration.messages[-1]


def test_shards_part_the_set(folder: Path) -> None:
    items = open_set(folder).items
    parts = [shard(items, index, 3) for index in range(3)]
    assert sorted(len(part) for part in parts) == [3, 3, 4]
    assert {item for part in parts for item in part} == set(items)


def test_a_picture_that_changes_after_opening_is_noticed(folder: Path) -> None:
    pictures: CalibrationSet = open_set(folder)
    first = pictures.items[0]
    assert read_picture(first).shape[2] == 3
    shutil.copy(pictures.items[1].path, first.path)
    with pytest.raises(DataError, match="has changed"):
        read_picture(first)


def test_pictures_come_as_bgr_turned_as_exif_says(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[..., 0] = 255
    data = cv2.imencode(".jpg", pixels)[1].tobytes()
    tiff = b"II*\x00\x08\x00\x00\x00\x01\x00" + b"\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00" + bytes(4)
    exif = b"Exif\x00\x00" + tiff
    (tmp_path / "turned.jpg").write_bytes(
        data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]
    )
    grey = tmp_path / "grey.png"
    cv2.imwrite(str(grey), np.full((3, 5), 77, np.uint8))
    by_name = {item.path.name: read_picture(item) for item in open_set(tmp_path).items}
    assert by_name["turned.jpg"].shape == (40, 20, 3)
    assert by_name["turned.jpg"][..., 0].mean() > 240
    assert by_name["grey.png"].shape == (3, 5, 3)
