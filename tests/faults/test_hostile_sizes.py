"""Small files that name or unpack to large sizes are refused in words, before anything is unpacked."""

from __future__ import annotations

import io
import itertools
import json
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import lz4.frame  # type: ignore[import-untyped,unused-ignore]
import numpy as np
import onnx
import pytest
import zstandard
from mcap.records import Chunk
from onnx import TensorProto, helper

from avq.builder.calibrate import avqcal
from avq.builder.calibrate.avqcal import _PREAMBLE, MAGIC
from avq.builder.graph.model import read_model
from avq.bundle.npz import read_npz
from avq.config.line_numbers import read_toml
from avq.errors import CalibrationError, ConfigError, ModelError
from avq.picture_files import MAX_PIXELS, declared_size_px, decode_picture
from avq.recording.chunks import MAX_CHUNK_BYTES, chunk_records


def megabytes_in_child(code: str) -> float:
    """The peak memory of a fresh process that runs ``code``, which must refuse.

    Not getrusage: its peak holds that of the process that forked.
    """
    peak = "\nimport re\nprint(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    done = subprocess.run([sys.executable, "-c", code + peak], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1]) / 1024


# MCAP chunks


def chunk(compression: str, data: bytes, size: int) -> Chunk:
    return Chunk(
        compression=compression,
        data=data,
        message_end_time=0,
        message_start_time=0,
        uncompressed_crc=0,
        uncompressed_size=size,
    )


def zstd_bomb(size: int) -> bytes:
    return zstandard.ZstdCompressor().compress(bytes(size))


@pytest.mark.parametrize(
    ("size", "compression", "data"),
    [
        (1 << 31, "zstd", zstd_bomb(1 << 20)),
        (1000, "zstd", zstd_bomb(1 << 22)),
        (1000, "lz4", lz4.frame.compress(bytes(1 << 22))),
        (MAX_CHUNK_BYTES + 1, "", b"x"),
        (100, "zstd", b"no frame"),
    ],
    ids=["named", "zstd", "lz4", "plain", "damaged"],
)
def test_chunks_are_refused_by_what_they_unpack_to(size: int, compression: str, data: bytes) -> None:
    with pytest.raises(Exception, match=r"unpack|frame|Frame|determining"):
        chunk_records(chunk(compression, data, size))


@pytest.mark.parametrize("compression", ["zstd", "lz4", ""])
def test_whole_chunks_are_read(compression: str) -> None:
    record = b"\x05" + struct.pack("<Q", 22 + 3) + struct.pack("<HIQQ", 1, 0, 5, 6) + b"abc"
    packed = {"zstd": zstandard.compress(record), "lz4": lz4.frame.compress(record), "": record}[compression]
    (message,) = chunk_records(chunk(compression, packed, len(record)))
    assert getattr(message, "data", None) == b"abc"


# npz parts


def npz(write: Callable[[io.BytesIO], None]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def test_arrays_are_refused_by_what_they_unpack_to() -> None:
    bomb = npz(lambda file: np.savez_compressed(file, x=np.zeros(80 << 20, np.uint8)))
    assert len(bomb) < 200_000
    with pytest.raises(ValueError, match="would unpack to"):
        read_npz(bomb)


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (550000000000,), }",
        b"(" * 60,
        b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    ],
)
def test_headers_that_name_more_than_there_is_are_refused(header: bytes) -> None:
    import zipfile

    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n" + bytes(64)

    def write(file: io.BytesIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x.npy", member)

    with pytest.raises(ValueError, match=r".+"):
        read_npz(npz(write))


def test_whole_arrays_are_read() -> None:
    arrays = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.array(5)}
    read = read_npz(npz(lambda file: np.savez_compressed(file, **arrays)))  # type: ignore[arg-type]
    assert list(read) == ["a", "b"] and all(np.array_equal(read[key], arrays[key]) for key in arrays)


# Calibration files


@pytest.mark.parametrize("body", [bytes(1 << 28), b"\xff\xff\0\0" + b"[" * 70_000], ids=["zeros", "nested"])
def test_calibration_files_are_refused(tmp_path: Path, body: bytes) -> None:
    packed = zlib.compress(body, 9)
    raw = _PREAMBLE.pack(MAGIC, len(body), sha256(packed).digest()) + packed
    (tmp_path / "x.avqcal").write_bytes(raw)
    with pytest.raises(CalibrationError, match="damaged"):
        avqcal.read(tmp_path / "x.avqcal")


# Pictures


def png_head(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def test_pictures_are_refused_by_their_header() -> None:
    with pytest.raises(ValueError, match=f"20000x20000 pixels, more than {MAX_PIXELS}"):
        decode_picture(png_head(20_000, 20_000) + bytes(100))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tiff", ".ppm", ".pgm"])
def test_the_size_in_the_header_is_that_of_the_picture(suffix: str) -> None:
    import cv2

    pixels = np.random.default_rng(1).integers(0, 255, (37, 53, 3), np.uint8)
    data = cv2.imencode(suffix, pixels[:, :, 0] if suffix == ".pgm" else pixels)[1].tobytes()
    assert declared_size_px(data) == (53, 37)
    assert decode_picture(data).shape == (37, 53, 3)


# TOML


@pytest.mark.parametrize(
    "text",
    [
        ".".join("a" for _ in range(50_000)) + " = 1",
        "a = " + "[" * 50_000 + "]" * 50_000,
        "a = " + "{b=" * 50_000,
        "a = " + "9" * 5000,
        "".join(f"k{number} = 1\n" for number in range(100_000)),
    ],
    ids=["dotted", "arrays", "tables", "digits", "long"],
)
def test_configurations_are_refused_by_depth_and_length(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.toml").write_text(text)
    began_s = time.monotonic()
    with pytest.raises(ConfigError):
        read_toml(tmp_path / "x.toml")
    assert time.monotonic() - began_s < 10


# ONNX


def value(name: str, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


IMAGE = (1, 3, 8, 8)


def model(
    nodes: list[onnx.NodeProto],
    functions: list[onnx.FunctionProto] | None = None,
    shape: tuple[int, ...] = IMAGE,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", [value("x", *shape)], [value("y", *IMAGE)])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    return helper.make_model(graph, functions=functions or [], opset_imports=opsets)


def function(name: str, *nodes: onnx.NodeProto) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    return helper.make_function("f", name, ["a"], ["b"], list(nodes), opsets)


def doubling(depth: int, *, recursive: bool = False) -> onnx.ModelProto:
    """Functions that call the one before twice."""
    functions = [function("f0", helper.make_node("Relu", ["a"], ["b"]))]
    for number in range(1, depth):
        called = f"f{number}" if recursive else f"f{number - 1}"
        first = helper.make_node(called, ["a"], ["m"], domain="f")
        functions.append(function(f"f{number}", first, helper.make_node(called, ["m"], ["b"], domain="f")))
    return model([helper.make_node(f"f{depth - 1}", ["x"], ["y"], domain="f")], functions)


def endless_loop() -> onnx.ModelProto:
    scalar = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Relu", ["v"], ["w"])],
        "body",
        [scalar("i", TensorProto.INT64, []), scalar("c", TensorProto.BOOL, []), value("v", *IMAGE)],
        [scalar("d", TensorProto.BOOL, []), value("w", *IMAGE)],
    )
    trips = helper.make_node(
        "Constant", [], ["n"], value=helper.make_tensor("n", TensorProto.INT64, [], [10**12])
    )
    return model([trips, helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)])


def long_name() -> onnx.ModelProto:
    return model([helper.make_node("Relu", ["x"], ["y"], name="n" * 10_000_000)])


def wide_input() -> onnx.ModelProto:
    return model([helper.make_node("Relu", ["x"], ["y"])], shape=(1, 3, 60_000, 60_000))


def chain() -> onnx.ModelProto:
    names = ["x", *(f"t{number}" for number in range(60_000))]
    return model([helper.make_node("Relu", [a], [b]) for a, b in itertools.pairwise(names)])


@pytest.mark.parametrize(
    ("make", "seen"),
    [
        (lambda: doubling(40), "nodes"),
        (lambda: doubling(3, recursive=True), "recursive"),
        (endless_loop, "trips"),
        (long_name, "characters"),
        (wide_input, "elements"),
        (chain, "nodes"),
    ],
    ids=["doubling", "recursive", "loop", "name", "input", "chain"],
)
def test_models_are_refused_by_their_sizes(
    tmp_path: Path, make: Callable[[], onnx.ModelProto], seen: str
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(make().SerializeToString())
    began_s = time.monotonic()
    with pytest.raises(ModelError) as error:
        read_model(path)
    assert seen in str(error.value) and time.monotonic() - began_s < 10


@pytest.mark.slow
def test_a_refused_file_takes_little_memory(tmp_path: Path) -> None:
    packed = zlib.compress(bytes(1 << 28), 9)
    raw = _PREAMBLE.pack(MAGIC, 1 << 28, sha256(packed).digest()) + packed
    (tmp_path / "x.avqcal").write_bytes(raw)
    calibration = "from avq.builder.calibrate import avqcal\nfrom pathlib import Path\n"
    calibration += f"try: avqcal.read(Path({json.dumps(str(tmp_path / 'x.avqcal'))}))\nexcept Exception: pass"
    assert megabytes_in_child(calibration) < 300
