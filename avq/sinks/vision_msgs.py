"""Published frames as ROS 2 messages: vision_msgs/msg/Detection2DArray in CDR, without a ROS installation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from avq.errors import MachineError
from avq.types import Published

#: Interface definitions of vision_msgs 4 (ROS 2 Humble and later), beyond what rosbags brings.
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


def vision_types() -> Any:
    """The type store of ROS 2 Humble with vision_msgs. Raises MachineError without rosbags."""
    try:
        from rosbags.typesys import Stores, get_types_from_msg, get_typestore
    except ImportError:
        raise MachineError(
            "ROS messages cannot be written here", seen="rosbags is missing", fix='pip install "avq[zenoh]"'
        ) from None
    store = get_typestore(Stores.ROS2_HUMBLE)
    for name, text in _DEFINITIONS.items():
        if name not in store.types:
            store.register(get_types_from_msg(text, name))
    return store


class DetectionArrays:
    """Serialises messages; built once, used on one thread.

    The poses of hypotheses stay zero: a camera alone knows no distance. ``class_id`` is the class name, the header's
    stamp is the capture as Unix time, its ``frame_id`` the camera.

    Args:
        labels: class names by id.
        unix_minus_monotonic_ns: the offset from capture times to Unix time.
    """

    def __init__(self, labels: Sequence[str], unix_minus_monotonic_ns: int) -> None:
        import numpy as np

        self._store = vision_types()
        self._labels = tuple(labels)
        self._offset_ns = unix_minus_monotonic_ns
        make = self._types("geometry_msgs", "Point", "Quaternion", "Pose", "PoseWithCovariance")
        pose = make["Pose"](make["Point"](0.0, 0.0, 0.0), make["Quaternion"](0.0, 0.0, 0.0, 1.0))
        self._no_pose = make["PoseWithCovariance"](pose, np.zeros(36))
        self._make = self._types(
            "vision_msgs",
            *(name.rpartition("/")[2] for name in _DEFINITIONS),
        )

    def _types(self, package: str, *names: str) -> dict[str, Any]:
        return {name: self._store.types[f"{package}/msg/{name}"] for name in names}

    def cdr(self, message: Published) -> bytes:
        """One message, encapsulation header included."""
        seen = message.detections
        header = self._header(seen.t_capture_ns + self._offset_ns, seen.camera)
        rows = zip(seen.boxes_xyxy_px.tolist(), seen.scores.tolist(), seen.class_ids.tolist(), strict=True)
        found = [self._detection(header, box, score, class_id) for box, score, class_id in rows]
        body = self._make["Detection2DArray"](header, found)
        return bytes(self._store.serialize_cdr(body, DETECTIONS))

    def _header(self, unix_ns: int, camera: str) -> Any:
        seconds, nanoseconds = divmod(unix_ns, 1_000_000_000)
        time = self._store.types["builtin_interfaces/msg/Time"](seconds, nanoseconds)
        return self._store.types["std_msgs/msg/Header"](time, camera)

    def _detection(self, header: Any, box: Sequence[float], score: float, class_id: int) -> Any:
        make = self._make
        label = self._labels[class_id] if class_id < len(self._labels) else str(class_id)
        hypothesis = make["ObjectHypothesisWithPose"](make["ObjectHypothesis"](label, score), self._no_pose)
        x0, y0, x1, y1 = box
        center = make["Pose2D"](make["Point2D"]((x0 + x1) / 2, (y0 + y1) / 2), 0.0)
        return make["Detection2D"](header, [hypothesis], make["BoundingBox2D"](center, x1 - x0, y1 - y0), "")
