"""Reading ONNX files that people really have, with errors that say what the file is instead."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import external_data_helper

from avq.errors import ModelError

_LFS_POINTER = b"version https://git-lfs"
_OTHER_FILES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"PK\x03\x04", "a zip archive (PyTorch checkpoints are)"),
    (0, b"\x89HDF", "an HDF5 file (Keras models are)"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (0, b"<!DOCTYPE", "an HTML page"),
    (0, b"<html", "an HTML page"),
    (0, b"<?xml", "an XML file (OpenVINO models are)"),
    (0, b"%PDF", "a PDF"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"{", "a JSON file"),
)


def read_model(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file with its external data, unchanged.

    Raises:
        ModelError: missing, a folder, empty, truncated, not ONNX, or its external data is absent.
    """
    _check_file(path)
    try:
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
    except Exception as error:  # protobuf's DecodeError has no typed home; OSError, ValueError
        raise ModelError(
            f"{path} is not a readable ONNX file",
            seen=f"{path.stat().st_size} bytes, {str(error) or type(error).__name__}",
            fix="download or export it again: it is truncated or of another format",
        ) from None
    if not model.graph.node or not model.opset_import:
        raise ModelError(
            f"{path} holds no ONNX graph",
            seen=f"{path.stat().st_size} bytes, {len(model.graph.node)} nodes",
            fix="download or export it again: it is truncated or of another format",
        )
    _load_external(model, path)
    return model


def _check_file(path: Path) -> None:
    export = "give the path of an .onnx file"
    if path.is_dir():
        raise ModelError(f"{path} is a folder, not an ONNX file", seen="a folder", fix=export)
    if not path.exists():
        raise ModelError(f"there is no file {path}", seen="nothing at that path", fix=export)
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise ModelError(f"{path} cannot be read", seen=str(error), fix="check its permissions") from None
    if not head:
        raise ModelError(f"{path} is empty", seen="0 bytes", fix="download or export it again")
    if head.startswith(_LFS_POINTER):
        raise ModelError(
            f"{path} is a git-lfs pointer, not the model", seen="a text file of git-lfs", fix="git lfs pull"
        )
    for offset, magic, kind in _OTHER_FILES:
        if head[offset:].startswith(magic):
            raise ModelError(f"{path} is not an ONNX file", seen=kind, fix="export the model to ONNX")


def _load_external(model: onnx.ModelProto, path: Path) -> None:
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # the library raises its own, OSError and ValueError alike
        raise ModelError(
            f"the weights of {path.name}, kept in a file beside it, cannot be read",
            seen=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
            fix=f"put the external data file into {path.parent} next to the model",
        ) from None
