"""Files that are not the model people think they are."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from avq.builder.graph.model import load_graph, read_model
from avq.errors import ModelError
from tests.decoders.head_replicas import yolox


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    file = tmp_path / "model.onnx"
    onnx.save(yolox(1, 3)[0].proto, str(file))
    return file


def refused(path: Path) -> ModelError:
    with pytest.raises(ModelError) as error:
        load_graph(path)
    assert error.value.what
    assert error.value.seen
    assert error.value.fix
    return error.value


def test_a_good_file_loads_alike_every_time(model_file: Path) -> None:
    assert load_graph(model_file).view.digest == load_graph(str(model_file)).view.digest


def test_missing_file_folder_and_empty_file(tmp_path: Path) -> None:
    assert "there is no file" in refused(tmp_path / "none.onnx").what
    assert "folder" in refused(tmp_path).what
    (tmp_path / "empty.onnx").touch()
    assert "empty" in refused(tmp_path / "empty.onnx").what


def test_git_lfs_pointer(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3659407\n")
    assert refused(file).fix == "git lfs pull"


def test_files_of_other_formats_are_named(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    cv2.imwrite(str(tmp_path / "p.jpg"), np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "p.jpg").rename(file)
    assert "JPEG" in refused(file).seen
    for content, kind in ((b"PK\x03\x04rest", "zip"), (b"<!DOCTYPE html>", "HTML"), (b'{"a": 1}', "JSON")):
        file.write_bytes(content)
        assert kind in refused(file).seen


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated_files(model_file: Path, share: float) -> None:
    content = model_file.read_bytes()
    model_file.write_bytes(content[: int(len(content) * share)])
    refused(model_file)


def test_noise_is_refused_whatever_it_holds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for size in (1, 10, 1000, 50_000):
        file = tmp_path / f"{size}.onnx"
        file.write_bytes(rng.bytes(size))
        refused(file)


def test_flipped_bytes_end_in_a_model_or_in_words(model_file: Path) -> None:
    content = model_file.read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(60):
        broken = bytearray(content)
        for place in rng.integers(0, len(content), 8):
            broken[place] = rng.integers(0, 256)
        model_file.write_bytes(bytes(broken))
        try:
            load_graph(model_file)
        except ModelError as error:
            assert error.what


def test_weights_beside_the_model_are_read_and_missed(tmp_path: Path, model_file: Path) -> None:
    whole = load_graph(model_file).view
    proto = onnx.load(str(model_file))
    apart = tmp_path / "apart.onnx"
    onnx.save_model(proto, str(apart), save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").is_file()
    assert load_graph(apart).view.digest == whole.digest
    (tmp_path / "weights.bin").unlink()
    error = refused(apart)
    assert "separate file" in error.what


def test_nothing_is_printed(model_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_graph(model_file)
    out = capfd.readouterr()
    assert (out.out, out.err) == ("", "")


@pytest.mark.slow
@pytest.mark.material
def test_real_models_keep_their_numbers(material: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    quiet.intra_op_num_threads = 1
    for name in (
        "models/yolox_nano_416.onnx",
        "models/nanodet_m_320.onnx",
        "quantized/twinlitenet_float_parent.onnx",
    ):
        model = load_graph(material / name)
        shape = model.view.inputs[0].shape
        feed = {model.view.inputs[0].name: np.random.default_rng(0).random(shape, np.float32)}
        before = onnxruntime.InferenceSession(str(material / name), quiet).run(None, feed)
        after = onnxruntime.InferenceSession(model.proto.SerializeToString(), quiet).run(None, feed)
        for a, b in zip(before, after, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(np.abs(a).max()))
        assert all(model.view.shape(t) is not None for n in model.view.nodes for t in n.outputs if t)


@pytest.mark.material
def test_real_quantized_models_are_told_apart(material: Path) -> None:
    for file in sorted((material / "quantized").glob("*.onnx")):
        if "float" in file.name:
            assert read_model(file).graph.node
        else:
            assert "--strategy qat" in refused(file).fix
