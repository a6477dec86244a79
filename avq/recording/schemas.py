"""JSON schemas of the channels of a flight record; the foxglove ones use Foxglove's names and fields."""

from __future__ import annotations

from typing import Any

_TIME = {
    "type": "object",
    "title": "time",
    "properties": {
        "sec": {"type": "integer", "minimum": 0},
        "nsec": {"type": "integer", "minimum": 0, "maximum": 999_999_999},
    },
}
_NUMBER = {"type": "number"}
_INTEGER = {"type": "integer"}
_TEXT = {"type": "string"}


def _object(title: str, **properties: Any) -> dict[str, Any]:
    return {"title": title, "type": "object", "properties": properties}


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_POINT = _object("foxglove.Point2", x=_NUMBER, y=_NUMBER)
_COLOR = _object("foxglove.Color", r=_NUMBER, g=_NUMBER, b=_NUMBER, a=_NUMBER)

COMPRESSED_IMAGE = _object(
    "foxglove.CompressedImage",
    timestamp=_TIME,
    frame_id=_TEXT,
    data={"type": "string", "contentEncoding": "base64"},
    format=_TEXT,
)
IMAGE_ANNOTATIONS = _object(
    "foxglove.ImageAnnotations",
    circles=_array(
        _object(
            "foxglove.CircleAnnotation",
            timestamp=_TIME,
            position=_POINT,
            diameter=_NUMBER,
            thickness=_NUMBER,
            fill_color=_COLOR,
            outline_color=_COLOR,
        )
    ),
    points=_array(
        _object(
            "foxglove.PointsAnnotation",
            timestamp=_TIME,
            type=_INTEGER,
            points=_array(_POINT),
            outline_color=_COLOR,
            outline_colors=_array(_COLOR),
            fill_color=_COLOR,
            thickness=_NUMBER,
        )
    ),
    texts=_array(
        _object(
            "foxglove.TextAnnotation",
            timestamp=_TIME,
            position=_POINT,
            text=_TEXT,
            font_size=_NUMBER,
            text_color=_COLOR,
            background_color=_COLOR,
        )
    ),
)
DETECTIONS = _object(
    "avq.Detections",
    camera=_TEXT,
    seq=_INTEGER,
    t_capture_ns=_INTEGER,
    age_ms=_NUMBER,
    late={"type": "boolean"},
    mode=_TEXT,
    bundle=_TEXT,
    dropped_since_last=_INTEGER,
    detections=_array(_object("avq.Box", label=_TEXT, score=_NUMBER, box_xyxy_px=_array(_NUMBER))),
)
TIMING = _object(
    "avq.Timing",
    camera=_TEXT,
    seq=_INTEGER,
    t_capture_ns=_INTEGER,
    queue_ns=_INTEGER,
    preprocess_ns=_INTEGER,
    infer_ns=_INTEGER,
    decode_ns=_INTEGER,
    age_ns=_INTEGER,
    deadline_ns=_INTEGER,
)
EVENT = _object("avq.Event", kind=_TEXT, t_ns=_INTEGER, reason=_TEXT)
