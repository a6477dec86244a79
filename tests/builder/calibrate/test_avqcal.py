"""Calibration files: exact round trips, and refusals that say what differs."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avq.builder.calibrate import avqcal
from avq.builder.calibrate.avqcal import CalibrationFile, Origin, Shard
from avq.builder.calibrate.histogram import Histogram
from avq.errors import CalibrationError

ORIGIN = Origin("g" * 64, '{"scale":1.0}', "onnxruntime 1.32.0", "all", "x86-64 avx2")
VALUES = (
    np.random.default_rng(0).normal(0, 1, (12, 500)).astype(np.float32) * 2.0 ** np.arange(-6, 6)[:, None]
)
DIGESTS = tuple(f"{number:064x}" for number in range(12))


def counted(images: list[int], shard: Shard | None = None) -> CalibrationFile:
    """As a run over these of the twelve pictures would give."""
    histogram = Histogram()
    for image in images:
        histogram.add(VALUES[image])
    names = tuple(sorted(DIGESTS[image] for image in images))
    return CalibrationFile(ORIGIN, names, {"a": histogram, "b": Histogram()}, shard)


def test_a_file_reads_back_equal_and_writes_back_identical(tmp_path: Path) -> None:
    data = counted([3, 1, 2], Shard(4, (1, 3), "ab" * 32))
    avqcal.write(tmp_path / "a.avqcal", data)
    again = avqcal.read(tmp_path / "a.avqcal")
    assert again == data
    avqcal.write(tmp_path / "b.avqcal", again)
    assert (tmp_path / "a.avqcal").read_bytes() == (tmp_path / "b.avqcal").read_bytes()
    assert again.digest == data.digest
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.avqcal", "b.avqcal"]


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    st.permutations(range(12)), st.lists(st.integers(0, 12), max_size=7), st.randoms(use_true_random=False)
)
def test_any_partition_merges_to_the_same_bytes(order: list[int], cuts: list[int], random: object) -> None:
    bounds = [0, *sorted(cuts), 12]
    parts = [counted(order[a:b]) for a, b in itertools.pairwise(bounds)]
    random.shuffle(parts)  # type: ignore[attr-defined]
    assert avqcal.merge(parts).digest == counted(list(range(12))).digest


@pytest.mark.parametrize("name", ["graph", "preprocess", "runtime", "optimisation", "instruction_set"])
def test_unlike_files_are_refused_and_the_field_is_named(name: str) -> None:
    other = replace(
        counted([1]),
        origin=replace(ORIGIN, **{name: "something else"}),  # type: ignore[arg-type]
    )
    with pytest.raises(
        CalibrationError, match=r"a\.avqcal and b\.avqcal were calibrated with different settings"
    ) as error:
        avqcal.merge([counted([0]), other], ["a.avqcal", "b.avqcal"])
    assert error.value.seen.startswith(f"{name}: ")
    assert "something else" in error.value.seen


def test_other_tensors_are_refused() -> None:
    other = counted([1])
    with pytest.raises(CalibrationError, match="different settings") as error:
        avqcal.merge([counted([0]), replace(other, histograms={"a": other.histograms["a"]})])
    assert "such as b" in error.value.seen


def test_overlapping_files_are_refused_and_the_pictures_listed() -> None:
    with pytest.raises(CalibrationError, match="2 of the same pictures") as error:
        avqcal.merge([counted([0]), counted([1, 2, 3]), counted([3, 4, 2])])
    assert DIGESTS[2][:16] in error.value.seen


def test_shards_of_other_sets_or_cuts_are_refused() -> None:
    whole = avqcal.set_digest(DIGESTS)
    first = counted([0], Shard(3, (0,), whole))
    for other in (
        counted([1], Shard(4, (1,), whole)),
        counted([1], Shard(3, (1,), "cd" * 32)),
        counted([1], Shard(3, (0,), whole)),
        counted([1]),
    ):
        with pytest.raises(CalibrationError, match="not shards of one set"):
            avqcal.merge([first, other])


def test_shards_that_lost_pictures_are_refused() -> None:
    whole = avqcal.set_digest(DIGESTS)
    with pytest.raises(CalibrationError, match="do not make up their set"):
        avqcal.merge([counted([0], Shard(2, (0,), whole)), counted([1], Shard(2, (1,), whole))])


def test_every_truncation_and_any_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c.avqcal"
    avqcal.write(path, counted([0, 5]))
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    for length in [0, 3, 8, 20, 47, 48, 60, *rng.integers(60, len(good), 20)]:
        path.write_bytes(good[:length])
        with pytest.raises(CalibrationError):
            avqcal.read(path)
    for position in rng.integers(0, len(good), 60):
        bad = bytearray(good)
        bad[position] ^= 0x41
        path.write_bytes(bad)
        with pytest.raises(CalibrationError):
            avqcal.read(path)


def test_what_is_no_calibration_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "x.avqcal"
    with pytest.raises(CalibrationError, match="cannot be read"):
        avqcal.read(path)
    path.write_bytes(b"\xff\xd8\xff\xe0 a picture")
    with pytest.raises(CalibrationError, match=r"not an \.avqcal file"):
        avqcal.read(path)
    path.write_bytes(avqcal.MAGIC[:7] + b"\x09" + bytes(80))
    with pytest.raises(CalibrationError) as error:
        avqcal.read(path)
    assert "format 9" in error.value.seen


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CalibrationError, match="cannot be written"):
        avqcal.write(tmp_path / "file" / "c.avqcal", counted([0]))
    for path in (tmp_path, tmp_path / "file" / "c.avqcal"):
        with pytest.raises(CalibrationError, match="cannot be written"):
            avqcal.check_writable(path)
