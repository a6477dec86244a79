"""Convert records to ROS 2 messages and write rosbag2 folders, with the library ``rosbags``."""

from __future__ import annotations

import base64
import importlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np

from avq.atomic_file import end_staging, new_staging_folder
from avq.errors import DataError, MachineError
from avq.recording import Record
from avq.recording.images import decode_image, is_image
from avq.recording.wire_formats import fields
from avq.sinks.zenoh import DETECTIONS, DetectionArrays, vision_types

_NO_HASH = "RIHS01_" + "0" * 64


def _rosbags(module: str) -> Any:
    try:
        return importlib.import_module(f"rosbags.{module}")
    except ImportError as error:
        raise MachineError(
            "rosbag2 folders need rosbags, which is not installed",
            seen=str(error),
            fix='pip install "avq[logs]"',
        ) from error


def standard_definition(name: str) -> bytes:
    """Return the definition of a standard type; b"" for other types, and where rosbags is not installed."""
    try:
        store = vision_types("logs")
    except MachineError:
        return b""
    if name not in store.types:
        return b""
    return str(store.generate_msgdef(name, ros_version=2)[0]).encode()


class Ros2Messages:
    """Convert records to ROS 2 messages: images, boxes, other JSON as text. Raises MachineError without rosbags."""

    def __init__(self) -> None:
        self._store = vision_types("logs")
        self._arrays = DetectionArrays(self._store)
        self._definitions: dict[str, bytes] = {}

    def convert(self, record: Record) -> Record | None:
        """Return the record in CDR; None without a ROS 2 form."""
        if record.message_encoding == "cdr":
            return record if record.schema_name else None
        try:
            typed_message = self._message(record)
        except (ValueError, LookupError, TypeError, msgspec.MsgspecError):
            return None
        if typed_message is None:
            return None
        kind, message = typed_message
        return replace(
            record,
            schema_name=kind,
            message_encoding="cdr",
            data=bytes(self._store.serialize_cdr(message, kind)),
            schema_encoding="ros2msg",
            schema_data=self._definition(kind),
            channel_metadata={},
        )

    def _definition(self, kind: str) -> bytes:
        if kind not in self._definitions:
            self._definitions[kind] = str(self._store.generate_msgdef(kind, ros_version=2)[0]).encode()
        return self._definitions[kind]

    def _message(self, record: Record) -> tuple[str, Any] | None:
        if is_image(record):
            return self._image(record)
        if record.message_encoding != "json":
            return None
        if record.schema_name == "avq.Detections":
            return DETECTIONS, self._detections(record)
        return "std_msgs/msg/String", self._type("std_msgs/msg/String")(data=record.data.decode())

    def _image(self, record: Record) -> tuple[str, Any]:
        compressed = _compressed_image(record)
        if compressed is not None:
            kind = "sensor_msgs/msg/CompressedImage"
            data = np.frombuffer(compressed[1], np.uint8)
            return kind, self._type(kind)(header=self._header(record), format=compressed[0], data=data)
        pixels = decode_image(record)
        kind = "sensor_msgs/msg/Image"
        return kind, self._type(kind)(
            header=self._header(record),
            height=pixels.shape[0],
            width=pixels.shape[1],
            encoding="bgr8",
            is_bigendian=0,
            step=3 * pixels.shape[1],
            data=np.ascontiguousarray(pixels).reshape(-1),
        )

    def _detections(self, record: Record) -> Any:
        rows = msgspec.json.decode(record.data)["detections"]
        return self._arrays.message(
            self._header(record),
            (
                (str(row["label"]), float(row["score"]), [float(v) for v in row["box_xyxy_px"]])
                for row in rows
            ),
        )

    def _header(self, record: Record) -> Any:
        frame_id = record.topic.removeprefix("/camera/").split("/")[0]
        return self._arrays.header(record.publish_time_ns, frame_id)

    def _type(self, name: str) -> Callable[..., Any]:
        return self._store.types[name]  # type: ignore[no-any-return]


def _compressed_image(record: Record) -> tuple[str, bytes] | None:
    """Return (format, encoded bytes) of a compressed image; None for raw pixels. Raises ValueError if damaged."""
    if record.schema_name != "foxglove.CompressedImage":
        return None
    if record.message_encoding == "json":
        message = msgspec.json.decode(record.data)
        return str(message["format"]), base64.b64decode(message["data"], validate=True)
    values = fields(record.data)
    return _bytes(values.get(4)).decode(), _bytes(values.get(2))


def _bytes(value: int | memoryview | None) -> bytes:
    if not isinstance(value, memoryview):
        raise ValueError("a field of bytes is missing")
    return bytes(value)


class Rosbag2Output:
    """Write a rosbag2 folder; on an error no folder is left.

    Raises:
        DataError: the folder exists, or cannot be written.
        MachineError: rosbags is not installed.
    """

    def __init__(self, path: Path, storage: str) -> None:
        self.path = path
        self.messages = 0
        rosbag2 = _rosbags("rosbag2")
        if path.exists() or path.is_symlink():
            raise DataError(
                f"the folder {path} exists", seen=str(path), fix="name a new folder, or remove it"
            )
        self._plugin = rosbag2.StoragePlugin[storage.upper()]
        self._connections: dict[tuple[str, str], Any] = {}
        try:
            self._temporary = new_staging_folder(path)
        except OSError as error:
            raise DataError(f"{path} cannot be written", seen=str(error), fix="choose another path") from None
        self._writer = rosbag2.Writer(self._temporary / path.name, version=9, storage_plugin=self._plugin)
        self._writer.open()

    def write(self, record: Record) -> None:
        key = (record.topic, record.schema_name)
        if key not in self._connections:
            self._connections[key] = self._connect(record)
        self._writer.write(self._connections[key], record.log_time_ns, record.data)
        self.messages += 1

    def _connect(self, record: Record) -> Any:
        text = record.schema_data or standard_definition(record.schema_name)
        return self._writer.add_connection(
            record.topic,
            record.schema_name,
            msgdef=text.decode("utf-8", "replace"),
            rihs01=_type_hash(record.schema_name, text.decode("utf-8", "replace"), record.schema_encoding),
            offered_qos_profiles=_qos(record),
        )

    def __enter__(self) -> Rosbag2Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._writer.close()
                (self._temporary / self.path.name).replace(self.path)
            else:
                self._writer.abort()
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)
            end_staging(self._temporary)


def _type_hash(name: str, text: str, encoding: str) -> str:
    """Return the RIHS01 hash of a type; zeros where the definition cannot be parsed."""
    typesys = _rosbags("typesys")
    try:
        idl = encoding == "ros2idl"
        types = typesys.get_types_from_idl(text) if idl else typesys.get_types_from_msg(text, name)
        store = typesys.get_typestore(typesys.Stores.EMPTY)
        store.register(types)
        return str(store.hash_rihs01(name))
    except (typesys.TypesysError, LookupError, ValueError, TypeError):
        return _NO_HASH


def _qos(record: Record) -> Any:
    metadata = _rosbags("rosbag2.metadata")
    try:
        return metadata.parse_qos(record.channel_metadata.get("offered_qos_profiles", ""))
    except Exception:  # the field may hold anything; the library raises several types
        return []
