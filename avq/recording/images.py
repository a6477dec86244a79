"""Decode image messages of logs to BGR pixels and replace their pixels: foxglove (JSON, protobuf) and ROS 2 (CDR)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import msgspec
import numpy as np

from avq.picture_files import decode_picture, largest_value
from avq.recording.reader import Record
from avq.recording.wire_formats import (
    CdrReader,
    CdrWriter,
    RawImage,
    foxglove_compressed_image,
    foxglove_raw_image,
    replace_fields,
    ros_compressed_image,
    ros_image,
    varint_field,
)
from avq.types import U8, AnyArray


class _JsonCompressed(msgspec.Struct):
    data: str


class _JsonRaw(msgspec.Struct):
    width: int
    height: int
    encoding: str
    step: int
    data: str


def _json_compressed(data: bytes) -> bytes:
    return binascii.a2b_base64(msgspec.json.decode(data, type=_JsonCompressed).data)


def _json_raw(data: bytes) -> RawImage:
    raw = msgspec.json.decode(data, type=_JsonRaw)
    return RawImage(raw.width, raw.height, raw.encoding, raw.step, memoryview(binascii.a2b_base64(raw.data)))


#: (schema, message encoding) -> reader of the encoded picture, or of raw pixels. Each raises ValueError (or a
#: subclass) on a damaged message.
_ENCODED: Mapping[tuple[str, str], Callable[[bytes], memoryview | bytes]] = {
    ("foxglove.CompressedImage", "json"): _json_compressed,
    ("foxglove.CompressedImage", "protobuf"): foxglove_compressed_image,
    ("sensor_msgs/msg/CompressedImage", "cdr"): ros_compressed_image,
}
_RAW: Mapping[tuple[str, str], Callable[[bytes], RawImage]] = {
    ("foxglove.RawImage", "json"): _json_raw,
    ("foxglove.RawImage", "protobuf"): foxglove_raw_image,
    ("sensor_msgs/msg/Image", "cdr"): ros_image,
}
#: (schema, message encoding) of every image message.
IMAGE_KINDS = frozenset({*_ENCODED, *_RAW})


def is_image(record: Record) -> bool:
    """Whether ``record`` is an image that ``decode_image`` reads."""
    return (record.schema_name, record.message_encoding) in IMAGE_KINDS


def decode_image(record: Record, bit_depth: int = 16) -> U8:
    """Decode an image message.

    Args:
        record: of one of ``IMAGE_KINDS``.
        bit_depth: bits that 16-bit values have, as ``topic_bit_depth`` finds them.

    Returns:
        (H, W, 3) uint8 BGR.

    Raises:
        ValueError: the message is damaged or has an unknown pixel encoding.
    """
    try:
        kind = (record.schema_name, record.message_encoding)
        if kind in _RAW:
            return bgr_pixels(_RAW[kind](record.data), bit_depth)
        return decode_picture(_ENCODED[kind](record.data), bit_depth=bit_depth)
    except (ValueError, LookupError, msgspec.MsgspecError, cv2.error) as error:
        raise ValueError(f"{record.topic} message {record.sequence}: {error}") from None
    except Exception as error:  # struct.error is no ValueError
        raise ValueError(f"{record.topic} message {record.sequence}: {error!r}") from None


#: encoding -> (bytes per pixel, OpenCV conversion to BGR, or None when it is BGR already).
_LAYOUTS: Mapping[str, tuple[int, int | None]] = {
    "bgr8": (3, None),
    "8UC3": (3, None),
    "rgb8": (3, cv2.COLOR_RGB2BGR),
    "bgra8": (4, cv2.COLOR_BGRA2BGR),
    "8UC4": (4, cv2.COLOR_BGRA2BGR),
    "rgba8": (4, cv2.COLOR_RGBA2BGR),
    "mono8": (1, cv2.COLOR_GRAY2BGR),
    "8UC1": (1, cv2.COLOR_GRAY2BGR),
    "bayer_rggb8": (1, cv2.COLOR_BayerRGGB2BGR),
    "bayer_bggr8": (1, cv2.COLOR_BayerBGGR2BGR),
    "bayer_gbrg8": (1, cv2.COLOR_BayerGBRG2BGR),
    "bayer_grbg8": (1, cv2.COLOR_BayerGRBG2BGR),
    "yuv422": (2, cv2.COLOR_YUV2BGR_UYVY),
    "uyvy": (2, cv2.COLOR_YUV2BGR_UYVY),
    "yuv422_yuy2": (2, cv2.COLOR_YUV2BGR_YUY2),
    "yuyv": (2, cv2.COLOR_YUV2BGR_YUY2),
}
_SIXTEEN_BIT = ("mono16", "16UC1")


def bgr_pixels(raw: RawImage, bit_depth: int = 16) -> U8:
    """Convert raw pixels to BGR.

    Args:
        raw: of a message.
        bit_depth: bits that 16-bit values have; the upper 8 of them are kept.

    Returns:
        (H, W, 3) uint8 BGR.

    Raises:
        ValueError: the encoding is unknown, or the data is too short for the size.
    """
    if raw.encoding in _SIXTEEN_BIT:
        grey = np.minimum(_grey16(raw) >> (bit_depth - 8), 255).astype(np.uint8)
        return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), np.uint8)
    if raw.encoding not in _LAYOUTS:
        raise ValueError(f"encoding '{raw.encoding}' is not one of {', '.join(_LAYOUTS)}")
    pixel_bytes, conversion = _LAYOUTS[raw.encoding]
    rows = np.ascontiguousarray(_rows(raw, pixel_bytes))
    if conversion is None:
        return rows
    return cv2.cvtColor(rows, conversion)  # type: ignore[return-value]


def _grey16(raw: RawImage) -> AnyArray:
    """Return (H, W) uint16."""
    rows = np.ascontiguousarray(_rows(raw, 2))
    return rows.view(">u2" if raw.big_endian else "<u2")[:, :, 0].astype(np.uint16)


def largest_of(record: Record) -> int | None:
    """Return the largest value of a 16-bit image message; None for other images, and for damaged ones."""
    raw, encoded = _RAW.get((record.schema_name, record.message_encoding)), None
    try:
        if raw is not None:
            image = raw(record.data)
            return int(_grey16(image).max(initial=0)) if image.encoding in _SIXTEEN_BIT else None
        encoded = _ENCODED[(record.schema_name, record.message_encoding)](record.data)
    except Exception:  # decode_image reports it
        return None
    return largest_value(bytes(encoded))


def _rows(raw: RawImage, pixel_bytes: int) -> U8:
    """Return (H, W, pixel_bytes) uint8 without the padding at the end of each row."""
    used = raw.width_px * pixel_bytes
    step = raw.step_bytes or used
    if step < used or raw.height_px * step > len(raw.data) or not used * raw.height_px:
        raise ValueError(
            f"{raw.width_px}x{raw.height_px} {raw.encoding} in rows of {step} bytes "
            f"does not fit {len(raw.data)} bytes"
        )
    rows = np.frombuffer(raw.data, np.uint8, raw.height_px * step).reshape(raw.height_px, step)
    return rows[:, :used].reshape(raw.height_px, raw.width_px, pixel_bytes)


JPEG_QUALITY = 95

#: First bytes of an encoded image -> (suffix for OpenCV, format field of the message). Any other becomes JPEG.
_LOSSLESS: Mapping[bytes, tuple[str, str]] = {b"\x89PNG": (".png", "png")}
_JPEG = (".jpg", "jpeg")


def replace_pixels(record: Record, pixels: U8) -> bytes:
    """Encode the message of ``record`` with other pixels; header and schema stay.

    PNG stays PNG, other compressed images become JPEG, raw ones become bgr8.

    Args:
        record: a message that ``decode_image`` reads.
        pixels: (H, W, 3) uint8 BGR.
    """
    return _ENCODERS[(record.schema_name, record.message_encoding)](record.data, pixels)


def _encode_like(before: bytes, pixels: U8) -> tuple[bytes, str]:
    suffix, name = _LOSSLESS.get(bytes(before[:4]), _JPEG)
    settings = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if suffix == ".jpg" else []
    _, data = cv2.imencode(suffix, pixels, settings)
    return np.asarray(data).tobytes(), name


def _encode_json_compressed(data: bytes, pixels: U8) -> bytes:
    message: dict[str, Any] = msgspec.json.decode(data)
    picture, name = _encode_like(binascii.a2b_base64(message["data"]), pixels)
    return msgspec.json.encode({**message, "data": base64.b64encode(picture).decode(), "format": name})


def _encode_json_raw(data: bytes, pixels: U8) -> bytes:
    message: dict[str, Any] = msgspec.json.decode(data)
    height, width = pixels.shape[:2]
    changed = {"width": width, "height": height, "encoding": "bgr8", "step": 3 * width}
    return msgspec.json.encode({**message, **changed, "data": base64.b64encode(pixels.tobytes()).decode()})


def _encode_protobuf_compressed(data: bytes, pixels: U8) -> bytes:
    picture, name = _encode_like(bytes(foxglove_compressed_image(data)[:4]), pixels)
    return replace_fields(data, {2: picture, 4: name.encode()})


def _encode_protobuf_raw(data: bytes, pixels: U8) -> bytes:
    height, width = pixels.shape[:2]
    return replace_fields(data, {4: b"bgr8", 6: pixels.tobytes()}, drop=(2, 3, 5)) + b"".join(
        varint_field(number, value) for number, value in ((2, width), (3, height), (5, 3 * width))
    )


def _encode_ros_compressed(data: bytes, pixels: U8) -> bytes:
    cdr = CdrReader(data)
    stamp, frame_id, kind = (cdr.number("i"), cdr.number("I")), cdr.text(), cdr.text()
    before = bytes(cdr.blob()[:4])
    picture, name = _encode_like(before, pixels)
    out = CdrWriter()
    out.header(stamp, frame_id)
    # image_transport reads the colour order from formats such as "rgb8; jpeg compressed bgr8": keep it if true
    out.text(kind if name in kind.lower() else name)
    out.blob(picture)
    return out.done()


def _encode_ros_image(data: bytes, pixels: U8) -> bytes:
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


_ENCODERS: Mapping[tuple[str, str], Callable[[bytes, U8], bytes]] = {
    ("foxglove.CompressedImage", "json"): _encode_json_compressed,
    ("foxglove.RawImage", "json"): _encode_json_raw,
    ("foxglove.CompressedImage", "protobuf"): _encode_protobuf_compressed,
    ("foxglove.RawImage", "protobuf"): _encode_protobuf_raw,
    ("sensor_msgs/msg/CompressedImage", "cdr"): _encode_ros_compressed,
    ("sensor_msgs/msg/Image", "cdr"): _encode_ros_image,
}
