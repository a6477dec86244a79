"""TensorRT calibration caches: read, written, refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avq.builder.encodings import CacheEntry, TrtCache, parse_cache, write_cache
from avq.builder.encodings.read import read_side_file
from avq.errors import CalibrationError
from avq.toolbox import weight_point
from avq.types import Edge
from tests.builder.encodings.network import ACTIVATIONS, READ_BY_WEIGHTED, WEIGHTS, graph

HEADER = "TRT-8501-EntropyCalibration2"

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), min_size=1, max_size=40)
hard_names = st.sampled_from(
    ["a: b", "(Unnamed Layer* 48) [Constant]_output", "x:0", " lead", "trail ", "a:3f800000"]
)
tensor_names = st.one_of(names.filter(str.strip), hard_names)
headers = st.builds(
    "TRT-{}-{}".format,
    st.integers(1000, 200000),
    st.sampled_from(["EntropyCalibration2", "EntropyCalibration", "MinMaxCalibration", "LegacyCalibration"]),
)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(headers, st.dictionaries(tensor_names, st.integers(0, 2**32 - 1), max_size=30))
def test_generated_caches_come_back_byte_for_byte(header: str, scales: dict[str, int]) -> None:
    written = "".join([f"{header}\n", *(f"{name}: {bits:08x}\n" for name, bits in scales.items())]).encode()
    cache = parse_cache(written)
    assert [(entry.tensor, entry.bits) for entry in cache.entries] == list(scales.items())
    assert write_cache(cache) == written


@given(st.floats(width=32, allow_nan=False))
def test_the_hex_digits_are_a_big_endian_float32(scale: float) -> None:
    (entry,) = parse_cache(f"{HEADER}\nx: {struct.pack('>f', scale).hex()}\n".encode()).entries
    assert entry.scale == scale
    assert CacheEntry.of("x", scale) == entry


def test_real_caches_come_back_byte_for_byte(material: Path) -> None:
    files = sorted((material / "trt_cache").iterdir())
    assert files
    for file in files:
        cache = parse_cache(file.read_bytes(), file.name)
        assert len(cache.entries) > 100
        assert all(0 < entry.scale < 1e3 for entry in cache.entries)
        assert write_cache(cache) == file.read_bytes()


def test_windows_line_ends_blank_lines_and_short_numbers_are_read() -> None:
    cache = parse_cache(f"{HEADER}\r\n\r\nx: 3F800000\r\nzero: 0\r\n".encode())
    assert [(e.tensor, e.scale) for e in cache.entries] == [("x", 1.0), ("zero", 0.0)]


@pytest.mark.parametrize(
    ("data", "line", "what"),
    [
        (b"", 1, "header"),
        (b"8501\nx: 3c008912\n", 1, "header"),
        (f"{HEADER}\nx 3c008912\n".encode(), 2, "no tensor"),
        (f"{HEADER}\n: 3c008912\n".encode(), 2, "no tensor"),
        (f"{HEADER}\ny: 3c008912\nx: \n".encode(), 3, "hexadecimal"),
        (f"{HEADER}\nx: 0.0123\n".encode(), 2, "hexadecimal"),
        (f"{HEADER}\nx: 3c00891200\n".encode(), 2, "hexadecimal"),
        (f"{HEADER}\nx: 3c008912\ny: 3c008912\nx: 3c008913\n".encode(), 4, "two scales"),
        (f"{HEADER}\nx\xff: 3c008912\n".encode("latin-1"), 2, "UTF-8"),
    ],
)
def test_a_broken_cache_names_its_line(data: bytes, line: int, what: str) -> None:
    with pytest.raises(CalibrationError) as error:
        parse_cache(data, "cal.bin")
    assert f"cal.bin:{line}:" in error.value.seen
    assert what in error.value.what
    assert error.value.fix


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\rb"])
def test_names_that_the_format_cannot_hold_are_not_written(name: str) -> None:
    with pytest.raises(CalibrationError, match="cannot name"):
        write_cache(TrtCache(HEADER, (CacheEntry.of(name, 1.0),)))


def cache_file(folder: Path, scales: dict[str, float]) -> Path:
    path = folder / "calib.cache"
    path.write_bytes(write_cache(TrtCache(HEADER, tuple(CacheEntry.of(*item) for item in scales.items()))))
    return path


def test_a_full_cache_quantizes_what_weighted_operators_read(tmp_path: Path) -> None:
    view = graph()
    scales = {name: 0.01 * (i + 1) for i, name in enumerate(ACTIVATIONS)}
    foreign = read_side_file(cache_file(tmp_path, scales), view)
    assert (foreign.dialect, foreign.producer) == ("trt-cache", HEADER)
    by_tensor = {point.edge.tensor: point for point in foreign.points}
    assert set(by_tensor) == {*READ_BY_WEIGHTED, *WEIGHTS}
    for name in READ_BY_WEIGHTED:
        point = by_tensor[name]
        assert point.symmetric and point.bits == 8 and point.scale == np.float32(scales[name])
        (node, index), *_ = view.consumers(name)
        assert point.edge == Edge(name, node.name, index)
    for name, (_, axis) in WEIGHTS.items():
        own = by_tensor[name]
        assert np.array_equal(own.scale, weight_point(own.edge, view.constants[name], axis).scale)
    assert {finding.code for finding in foreign.findings} == {"AVQ-Q57"}
    assert not foreign.errors


def test_operators_whose_input_is_not_named_are_left_alone(tmp_path: Path) -> None:
    foreign = read_side_file(cache_file(tmp_path, {"picture": 0.01, "gone: away": 0.5, "flat": 0.0}), graph())
    assert {point.edge.tensor for point in foreign.points} == {"picture", "stem.weight"}
    seen = {finding.code: finding.seen for finding in foreign.findings}
    assert "gone: away (calib.cache:3)" in seen["AVQ-Q50"]
    assert "flat (calib.cache:4) scale 0" in seen["AVQ-Q53"]


def test_a_cache_of_another_model_is_an_error_that_says_so(tmp_path: Path) -> None:
    foreign = read_side_file(cache_file(tmp_path, {"pictures": 0.01}), graph())
    (finding,) = foreign.errors
    assert finding.code == "AVQ-Q50" and "'picture'" in finding.fix
