"""Published frames over Zenoh, as vision_msgs/Detection2DArray in CDR: what ROS 2 bridges read.

``zenoh://fleet/17?connect=tcp/10.0.0.2:7447`` publishes ``fleet/17/<camera>/detections``.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from avq.clock import UNIX_CLOCK
from avq.errors import MachineError, RequestError
from avq.hookspecs import Sink
from avq.types import Frame, Published
from avq.uris import one_of, parameters

#: Interface definitions of vision_msgs 4 (ROS 2 Humble and later), which rosbags does not include.
_DEFINITIONS = {
    "vision_msgs/msg/Point2D": "float64 x\nfloat64 y\n",
    "vision_msgs/msg/Pose2D": "vision_msgs/Point2D position\nfloat64 theta\n",
    "vision_msgs/msg/BoundingBox2D": "vision_msgs/Pose2D center\nfloat64 size_x\nfloat64 size_y\n",
    "vision_msgs/msg/ObjectHypothesis": "string class_id\nfloat64 score\n",
    "vision_msgs/msg/ObjectHypothesisWithPose": "vision_msgs/ObjectHypothesis hypothesis\n"
    "geometry_msgs/PoseWithCovariance pose\n",
    "vision_msgs/msg/Detection2D": "std_msgs/Header header\nvision_msgs/ObjectHypothesisWithPose[] results\n"
    "vision_msgs/BoundingBox2D bbox\nstring id\n",
    "vision_msgs/msg/Detection2DArray": "std_msgs/Header header\nvision_msgs/Detection2D[] detections\n",
}
DETECTIONS = "vision_msgs/msg/Detection2DArray"


def vision_types(extra: str = "zenoh") -> Any:
    """Return rosbags' type store of ROS 2 Humble with vision_msgs.

    Args:
        extra: the optional dependencies of avq that bring rosbags, for the message.

    Raises:
        MachineError: rosbags is not installed.
    """
    try:
        from rosbags.typesys import Stores, get_types_from_msg, get_typestore
    except ImportError as error:
        raise MachineError(
            "ROS 2 messages need rosbags, which is not installed",
            seen=str(error),
            fix=f'pip install "avq[{extra}]"',
        ) from error
    store = get_typestore(Stores.ROS2_HUMBLE)
    for name, text in _DEFINITIONS.items():
        if name not in store.types:
            store.register(get_types_from_msg(text, name))
    return store


class DetectionArrays:
    """Build vision_msgs/msg/Detection2DArray messages; used on one thread.

    The poses of hypotheses stay zero: a camera alone measures no distance. ``class_id`` is the class name.

    Args:
        store: of ``vision_types``.
    """

    def __init__(self, store: Any) -> None:
        import numpy as np

        self._store = store
        make = self._types("geometry_msgs", "Point", "Quaternion", "Pose", "PoseWithCovariance")
        pose = make["Pose"](make["Point"](0.0, 0.0, 0.0), make["Quaternion"](0.0, 0.0, 0.0, 1.0))
        self._no_pose = make["PoseWithCovariance"](pose, np.zeros(36))
        self._make = self._types(
            "vision_msgs",
            *(name.rpartition("/")[2] for name in _DEFINITIONS),
        )

    def _types(self, package: str, *names: str) -> dict[str, Any]:
        return {name: self._store.types[f"{package}/msg/{name}"] for name in names}

    def message(self, header: Any, rows: Iterable[tuple[str, float, Sequence[float]]]) -> Any:
        """Build one message.

        Args:
            header: of ``header``.
            rows: (label, score, box x0 y0 x1 y1 in pixels) of each detection.
        """
        return self._make["Detection2DArray"](header, [self._detection(header, *row) for row in rows])

    def header(self, unix_ns: int, frame_id: str) -> Any:
        """Build a std_msgs/msg/Header; its seconds are 32-bit and wrap."""
        seconds, nanoseconds = divmod(unix_ns, 1_000_000_000)
        stamp = self._store.types["builtin_interfaces/msg/Time"](seconds % 2**31, nanoseconds)
        return self._store.types["std_msgs/msg/Header"](stamp, frame_id)

    def cdr(self, message: Any) -> bytes:
        """Serialise one message, encapsulation header included."""
        return bytes(self._store.serialize_cdr(message, DETECTIONS))

    def _detection(self, header: Any, label: str, score: float, box_xyxy_px: Sequence[float]) -> Any:
        make = self._make
        hypothesis = make["ObjectHypothesisWithPose"](make["ObjectHypothesis"](label, score), self._no_pose)
        x0, y0, x1, y1 = box_xyxy_px
        center = make["Pose2D"](make["Point2D"]((x0 + x1) / 2, (y0 + y1) / 2), 0.0)
        return make["Detection2D"](header, [hypothesis], make["BoundingBox2D"](center, x1 - x0, y1 - y0), "")


PARAMETERS = ("mode", "connect", "listen", "scout")
MODES = ("peer", "client")
#: Closing cuts off what is not out yet, and Zenoh does not say when all of it is.
_LINGER_S = 0.5
_KEY = re.compile(r"[^/*$#?\s]+(/[^/*$#?\s]+)*")


class ZenohSinkType:
    """``zenoh://KEY?mode=peer|client&connect=ENDPOINT,...&listen=ENDPOINT,...&scout=true|false``."""

    schemes = ("zenoh",)

    def open(self, uri: str, *, labels: Sequence[str]) -> Sink:
        """Raises RequestError on a URI that does not fit, MachineError where Zenoh is missing or cannot open."""
        key, settings = zenoh_settings(uri)
        return ZenohSink(key, settings, labels)

    def check(self, uri: str) -> None:
        """Raises RequestError on a URI that does not fit."""
        zenoh_settings(uri)


def zenoh_settings(uri: str) -> tuple[str, dict[str, Any]]:
    """(key prefix, Zenoh configuration by path). Raises RequestError."""
    key = uri.partition("://")[2].partition("?")[0].strip("/")
    if not _KEY.fullmatch(key):
        raise RequestError("a Zenoh sink needs a key without wildcards", seen=uri, fix="zenoh://fleet/17")
    table = parameters(uri, PARAMETERS)
    settings: dict[str, Any] = {"mode": one_of(table, "mode", MODES)}
    for name in ("connect", "listen"):
        if name in table:
            settings[f"{name}/endpoints"] = [_endpoint(text, uri) for text in table[name].split(",")]
    settings["scouting/multicast/enabled"] = one_of(table, "scout", ("true", "false")) == "true"
    return key, settings


def _endpoint(text: str, uri: str) -> str:
    protocol, slash, address = text.partition("/")
    if not (protocol.isalnum() and slash and address):
        raise RequestError(
            f"'{text}' is not a Zenoh endpoint", seen=uri, fix="protocol/address, as in tcp/10.0.0.2:7447"
        )
    return text


class ZenohSink:
    """One publisher per camera, declared with its first message; subscribers are optional.

    A listener that takes too little is waited for, on the sink's thread: what it misses is then counted. (Zenoh alone
    would drop it and not say so.) One that takes nothing for five seconds is given up by Zenoh, until it comes back.

    Args:
        key: prefix of the keys.
        settings: of Zenoh, by path.
        labels: class names by id.
    """

    wants_pixels = False

    def __init__(self, key: str, settings: Mapping[str, Any], labels: Sequence[str]) -> None:
        try:
            import zenoh
        except ImportError:
            raise MachineError(
                "the Zenoh sink needs eclipse-zenoh",
                seen="it is not installed",
                fix='pip install "avq[zenoh]"',
            ) from None
        self._arrays = DetectionArrays(vision_types())
        self._labels = tuple(labels)
        self._key = key
        self._publishers: dict[str, Any] = {}
        config = zenoh.Config()
        try:
            for path, value in settings.items():
                config.insert_json5(path, json.dumps(value))
            self._session: Any = zenoh.open(config)
        except Exception as error:  # zenoh.ZError, and what a later version calls it
            raise MachineError(
                "Zenoh cannot be opened", seen=str(error), fix="check the endpoints of the sink's URI"
            ) from None

    def write(self, message: Published, frame: Frame | None) -> None:
        camera = message.detections.camera
        if camera not in self._publishers:
            self._publishers[camera] = self._declared(camera)
        self._publishers[camera].put(self._cdr(message))

    def _cdr(self, message: Published) -> bytes:
        """Serialise a published frame: the stamp is the capture in Unix time, ``frame_id`` the camera."""
        seen = message.detections
        header = self._arrays.header(seen.t_capture_ns + UNIX_CLOCK.offset_ns(), seen.camera)
        labels = [
            self._labels[class_id] if class_id < len(self._labels) else str(class_id)
            for class_id in seen.class_ids.tolist()
        ]
        rows = zip(labels, seen.scores.tolist(), seen.boxes_xyxy_px.tolist(), strict=True)
        return self._arrays.cdr(self._arrays.message(header, rows))

    def _declared(self, camera: str) -> Any:
        from zenoh import CongestionControl

        return self._session.declare_publisher(
            f"{self._key}/{camera}/detections", congestion_control=CongestionControl.BLOCK
        )

    def close(self) -> None:
        time.sleep(_LINGER_S if self._publishers else 0.0)
        self._session.close()
