"""Records as ROS 2 messages, and rosbag2 folders out of them (with the library ``rosbags``)."""

from __future__ import annotations

import base64
import importlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np

from avq.errors import DataError, MachineError
from avq.recording import Record
from avq.recording.images import decode_image, is_image
from avq.recording.wire_formats import fields

#: vision_msgs 4 (ROS 2 Humble and newer); the library knows the types of common_interfaces only.
_VISION: Mapping[str, str] = {
    "vision_msgs/msg/Point2D": "float64 x\nfloat64 y\n",
    "vision_msgs/msg/Pose2D": "vision_msgs/Point2D position\nfloat64 theta\n",
    "vision_msgs/msg/BoundingBox2D": "vision_msgs/Pose2D center\nfloat64 size_x\nfloat64 size_y\n",
    "vision_msgs/msg/ObjectHypothesis": "string class_id\nfloat64 score\n",
    "vision_msgs/msg/ObjectHypothesisWithPose": (
        "vision_msgs/ObjectHypothesis hypothesis\ngeometry_msgs/PoseWithCovariance pose\n"
    ),
    "vision_msgs/msg/Detection2D": (
        "std_msgs/Header header\nvision_msgs/ObjectHypothesisWithPose[] results\n"
        "vision_msgs/BoundingBox2D bbox\nstring id\n"
    ),
    "vision_msgs/msg/Detection2DArray": "std_msgs/Header header\nvision_msgs/Detection2D[] detections\n",
}
_NO_HASH = "RIHS01_" + "0" * 64


def _rosbags(module: str) -> Any:
    try:
        return importlib.import_module(f"rosbags.{module}")
    except ImportError as error:
        raise MachineError(
            "this conversion needs rosbags, which is not installed here",
            seen=str(error),
            fix='pip install "avq[logs]"',
        ) from error


def _standard_types() -> Any:
    """The types of ROS 2 that rosbags knows, and those of vision_msgs."""
    typesys = _rosbags("typesys")
    store = typesys.get_typestore(typesys.Stores.ROS2_HUMBLE)
    for name, text in _VISION.items():
        store.register(typesys.get_types_from_msg(text, name))
    return store


def standard_definition(name: str) -> bytes:
    """The definition text of a standard type; b"" for others, and where rosbags is not installed."""
    try:
        store = _standard_types()
    except MachineError:
        return b""
    if name not in store.types:
        return b""
    return str(store.generate_msgdef(name, ros_version=2)[0]).encode()


class Ros2Messages:
    """Any record as a ROS 2 message: pictures, boxes, and other JSON as text. Raises MachineError without rosbags."""

    def __init__(self) -> None:
        self._store = _standard_types()
        self._definitions: dict[str, bytes] = {}

    def of(self, record: Record) -> Record | None:
        """The record in CDR, or None where ROS 2 has no form for it."""
        if record.message_encoding == "cdr":
            return record if record.schema_name else None
        try:
            made = self._made(record)
        except (ValueError, LookupError, TypeError, msgspec.MsgspecError):
            return None
        if made is None:
            return None
        kind, message = made
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

    def _made(self, record: Record) -> tuple[str, Any] | None:
        if is_image(record):
            return self._picture(record)
        if record.message_encoding != "json":
            return None
        if record.schema_name == "avq.Detections":
            return "vision_msgs/msg/Detection2DArray", self._detections(record)
        return "std_msgs/msg/String", self._type("std_msgs/msg/String")(data=record.data.decode())

    def _picture(self, record: Record) -> tuple[str, Any]:
        packed = _packed_picture(record)
        if packed is not None:
            kind = "sensor_msgs/msg/CompressedImage"
            data = np.frombuffer(packed[1], np.uint8)
            return kind, self._type(kind)(header=self._header(record), format=packed[0], data=data)
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
        """Boxes as centre and size in pixels; ``class_id`` is the label; the pose is not known and stays zero."""
        header = self._header(record)
        found = []
        for row in msgspec.json.decode(record.data)["detections"]:
            x0, y0, x1, y1 = (float(v) for v in row["box_xyxy_px"])
            point = self._type("vision_msgs/msg/Point2D")((x0 + x1) / 2, (y0 + y1) / 2)
            box = self._type("vision_msgs/msg/BoundingBox2D")(
                self._type("vision_msgs/msg/Pose2D")(point, 0.0), x1 - x0, y1 - y0
            )
            guess = self._type("vision_msgs/msg/ObjectHypothesis")(str(row["label"]), float(row["score"]))
            result = self._type("vision_msgs/msg/ObjectHypothesisWithPose")(guess, self._no_pose())
            found.append(self._type("vision_msgs/msg/Detection2D")(header, [result], box, ""))
        return self._type("vision_msgs/msg/Detection2DArray")(header, found)

    def _no_pose(self) -> Any:
        pose = self._type("geometry_msgs/msg/Pose")(
            self._type("geometry_msgs/msg/Point")(0.0, 0.0, 0.0),
            self._type("geometry_msgs/msg/Quaternion")(0.0, 0.0, 0.0, 1.0),
        )
        return self._type("geometry_msgs/msg/PoseWithCovariance")(pose, np.zeros(36))

    def _header(self, record: Record) -> Any:
        seconds, nanoseconds = divmod(record.publish_time_ns, 1_000_000_000)
        stamp = self._type("builtin_interfaces/msg/Time")(seconds % 2**31, nanoseconds)
        return self._type("std_msgs/msg/Header")(stamp, record.topic.removeprefix("/camera/").split("/")[0])

    def _type(self, name: str) -> Callable[..., Any]:
        return self._store.types[name]  # type: ignore[no-any-return]


def _packed_picture(record: Record) -> tuple[str, bytes] | None:
    """(format, encoded bytes) of a compressed picture; None for raw pixels. Raises ValueError on a damaged one."""
    if record.schema_name != "foxglove.CompressedImage":
        return None
    if record.message_encoding == "json":
        message = msgspec.json.decode(record.data)
        return str(message["format"]), base64.b64decode(message["data"], validate=True)
    found = fields(record.data)
    return _bytes(found.get(4)).decode(), _bytes(found.get(2))


def _bytes(value: int | memoryview | None) -> bytes:
    if not isinstance(value, memoryview):
        raise ValueError("bytes are missing")
    return bytes(value)


class Rosbag2Output:
    """A rosbag2 folder in the making; on an error nothing is left under its name.

    Raises:
        DataError: the folder exists already, or cannot be written. MachineError: rosbags is not installed.
    """

    def __init__(self, path: Path, storage: str) -> None:
        self.path = path
        self.messages = 0
        rosbag2 = _rosbags("rosbag2")
        if path.exists():
            raise DataError(f"{path} exists already", seen=str(path), fix="name a new folder, or remove it")
        self._plugin = rosbag2.StoragePlugin[storage.upper()]
        self._connections: dict[tuple[str, str], Any] = {}
        try:
            self._aside = Path(tempfile.mkdtemp(prefix=".avq-", dir=path.parent))
        except OSError as error:
            raise DataError(
                f"{path} cannot be written", seen=str(error), fix="choose another place"
            ) from None
        self._writer = rosbag2.Writer(self._aside / path.name, version=9, storage_plugin=self._plugin)
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
                (self._aside / self.path.name).replace(self.path)
            else:
                self._writer.abort()
        finally:
            shutil.rmtree(self._aside, ignore_errors=True)


def _type_hash(name: str, text: str, encoding: str) -> str:
    """ROS 2's digest of a type; zeros where the definition cannot be read."""
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
    except Exception:  # what a log says of itself may be anything; the library raises several kinds
        return []
