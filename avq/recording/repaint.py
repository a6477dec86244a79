"""Put changed pixels back into an image message of a log: same topic, same schema, same header."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import msgspec
import numpy as np

from avq.recording.cdr import CdrReader, CdrWriter
from avq.recording.protobuf import foxglove_compressed_image, replace_fields, varint_field
from avq.recording.reader import Record
from avq.types import U8

JPEG_QUALITY = 95

#: First bytes of a picture -> (suffix for OpenCV, what the format field says). Anything else becomes JPEG.
_LOSSLESS: Mapping[bytes, tuple[str, str]] = {b"\x89PNG": (".png", "png")}
_JPEG = (".jpg", "jpeg")


def repaint(record: Record, pixels: U8) -> bytes:
    """The message of ``record`` with ``pixels``, (H, W, 3) uint8 BGR, in place of its picture.

    PNG stays PNG, other compressed pictures become JPEG, raw ones become bgr8. The message must be one that
    ``decode_image`` could read.
    """
    return _KINDS[(record.schema_name, record.message_encoding)](record.data, pixels)


def _encoded(before: bytes, pixels: U8) -> tuple[bytes, str]:
    suffix, name = _LOSSLESS.get(bytes(before[:4]), _JPEG)
    settings = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if suffix == ".jpg" else []
    _, data = cv2.imencode(suffix, pixels, settings)
    return np.asarray(data).tobytes(), name


def _repaint_json_compressed(data: bytes, pixels: U8) -> bytes:
    message: dict[str, Any] = msgspec.json.decode(data)
    picture, name = _encoded(binascii.a2b_base64(message["data"]), pixels)
    return msgspec.json.encode({**message, "data": base64.b64encode(picture).decode(), "format": name})


def _repaint_json_raw(data: bytes, pixels: U8) -> bytes:
    message: dict[str, Any] = msgspec.json.decode(data)
    height, width = pixels.shape[:2]
    changed = {"width": width, "height": height, "encoding": "bgr8", "step": 3 * width}
    return msgspec.json.encode({**message, **changed, "data": base64.b64encode(pixels.tobytes()).decode()})


def _protobuf_compressed(data: bytes, pixels: U8) -> bytes:
    picture, name = _encoded(bytes(foxglove_compressed_image(data)[:4]), pixels)
    return replace_fields(data, {2: picture, 4: name.encode()})


def _protobuf_raw(data: bytes, pixels: U8) -> bytes:
    height, width = pixels.shape[:2]
    return replace_fields(data, {4: b"bgr8", 6: pixels.tobytes()}, drop=(2, 3, 5)) + b"".join(
        varint_field(number, value) for number, value in ((2, width), (3, height), (5, 3 * width))
    )


def _ros_compressed(data: bytes, pixels: U8) -> bytes:
    cdr = CdrReader(data)
    stamp, frame_id, kind = (cdr.number("i"), cdr.number("I")), cdr.text(), cdr.text()
    before = bytes(cdr.blob()[:4])
    picture, name = _encoded(before, pixels)
    out = CdrWriter()
    out.header(stamp, frame_id)
    # "rgb8; jpeg compressed bgr8" tells image_transport the order of colours: keep it while it stays true.
    out.text(kind if name in kind.lower() else name)
    out.blob(picture)
    return out.done()


def _ros_image(data: bytes, pixels: U8) -> bytes:
    cdr = CdrReader(data)
    stamp, frame_id = (cdr.number("i"), cdr.number("I")), cdr.text()
    height, width = pixels.shape[:2]
    out = CdrWriter()
    out.header(stamp, frame_id)
    out.number("I", height)
    out.number("I", width)
    out.text("bgr8")
    out.number("B", 0)
    out.number("I", 3 * width)
    out.blob(pixels.tobytes())
    return out.done()


_KINDS: Mapping[tuple[str, str], Callable[[bytes, U8], bytes]] = {
    ("foxglove.CompressedImage", "json"): _repaint_json_compressed,
    ("foxglove.RawImage", "json"): _repaint_json_raw,
    ("foxglove.CompressedImage", "protobuf"): _protobuf_compressed,
    ("foxglove.RawImage", "protobuf"): _protobuf_raw,
    ("sensor_msgs/msg/CompressedImage", "cdr"): _ros_compressed,
    ("sensor_msgs/msg/Image", "cdr"): _ros_image,
}
