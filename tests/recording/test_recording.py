"""Flight records: what is written is what any MCAP reader sees, also after a crash."""

from __future__ import annotations

import base64
import io
import json
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mcap.reader import make_reader

from avq.daemon import sink_types, source_types
from avq.errors import DataError, RequestError
from avq.recording import LogReader, LogSource, LogWriter, RecorderSink
from avq.recording.images import bgr_pixels, decode_image
from avq.recording.reader import Record
from avq.recording.wire_formats import RawImage
from avq.sinks import open_sink
from avq.sources import open_source
from avq.types import Detections, Published, StageTimes
from tests.conftest import ROOT
from tests.recording.recording_kit import LABELS, picture, published


def record(path: Path, frames: int, **options: object) -> None:
    sink = RecorderSink(path, labels=LABELS, **options)  # type: ignore[arg-type]
    for seq in range(frames):
        message, frame = published(seq)
        sink.write_timing(message, StageTimes(1, 2, 3, 4))
        sink.write(message, frame)
    sink.write_event({"kind": "alert_raised", "t_ns": 5, "reason": "late"})
    sink.close()


def check_whole(schema: dict) -> None:  # type: ignore[type-arg]
    """Every object names its properties and every array its items: viewers need them to build message types."""
    assert schema["type"] in ("object", "array", "string", "number", "integer", "boolean")
    if schema["type"] == "object":
        assert schema["title"] and schema["properties"]
        for inner in schema["properties"].values():
            check_whole(inner)
    elif schema["type"] == "array":
        check_whole(schema["items"])


def test_a_record_opens_in_the_standard_reader_with_foxglove_channels(tmp_path: Path) -> None:
    record(tmp_path / "run.mcap", 5)
    with (tmp_path / "run.mcap").open("rb") as file:
        rows = list(make_reader(file).iter_messages())
    topics: dict[Any, Any] = {}
    for schema, channel, _ in rows:
        assert (schema.encoding, channel.message_encoding) == ("jsonschema", "json")
        check_whole(json.loads(schema.data))
        topics[channel.topic] = (schema.name, topics.get(channel.topic, ("", 0))[1] + 1)
    assert topics == {
        "/camera/front/image": ("foxglove.CompressedImage", 5),
        "/camera/front/annotations": ("foxglove.ImageAnnotations", 5),
        "/camera/front/detections": ("avq.Detections", 5),
        "/avq/timing": ("avq.Timing", 5),
        "/avq/events": ("avq.Event", 1),
    }


def test_picture_boxes_and_times_come_back(tmp_path: Path) -> None:
    path = tmp_path / "run.mcap"
    record(path, 3, image="png")
    with LogReader(path) as log:
        records = list(log)
    assert log.damage == ""
    offset_ns = int(log.metadata["avq"]["unix_minus_monotonic_ns"])
    message, frame = published(2)
    last = {record.topic: record for record in records}
    assert np.array_equal(decode_image(last["/camera/front/image"]), frame.pixels)
    image = json.loads(last["/camera/front/image"].data)
    assert base64.b64decode(image["data"])[:4] == b"\x89PNG"
    assert last["/camera/front/image"].publish_time_ns - offset_ns == frame.t_capture_ns
    assert last["/camera/front/image"].log_time_ns - offset_ns == frame.t_capture_ns + message.age_ns
    line = json.loads(last["/camera/front/detections"].data)
    assert line["detections"][1] == {"label": "person", "score": 0.75, "box_xyxy_px": [10, 10, 30, 40]}
    assert (line["seq"], line["t_capture_ns"], line["age_ms"]) == (2, frame.t_capture_ns, 12.346)
    drawn = json.loads(last["/camera/front/annotations"].data)
    assert drawn["points"][0]["type"] == 2
    assert [(p["x"], p["y"]) for p in drawn["points"][1]["points"]] == [
        (10, 10),
        (30, 10),
        (30, 40),
        (10, 40),
    ]
    assert drawn["texts"][1]["text"] == "person 0.75"
    timing = json.loads(last["/avq/timing"].data)
    assert (timing["queue_ns"], timing["decode_ns"], timing["age_ns"]) == (1, 4, 12_345_678)


def test_the_log_is_a_source_again(tmp_path: Path) -> None:
    path = tmp_path / "run.mcap"
    record(path, 7, image="png")
    source = open_source(str(path), source_types())
    assert not source.live
    for seq in range(7):
        got = source.read()
        assert got is not None and np.array_equal(got[0], picture(seq))
    assert source.read() is None
    source.close()


@pytest.fixture(scope="module")
def whole_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "whole.mcap"
    record(path, 30)
    return path


@settings(max_examples=60, deadline=None)
@example(share=1.0)
@example(share=1 - 1e-9)
@given(share=st.floats(0, 1))
def test_any_cut_leaves_a_readable_prefix(
    whole_log: Path, tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    data = whole_log.read_bytes()
    with LogReader(whole_log) as log:
        whole = list(log)
    cut = max(8, int(share * len(data)))
    path = tmp_path_factory.mktemp("cut") / "cut.mcap"
    path.write_bytes(data[:cut])
    with LogReader(path) as log:
        left = list(log)
    assert left == whole[: len(left)]
    assert log.messages == len(left)
    assert (log.damage == "") == (cut == len(data))


def test_a_damaged_chunk_costs_only_itself(whole_log: Path, tmp_path: Path) -> None:
    data = bytearray(whole_log.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 16] = bytes(16)
    path = tmp_path / "damaged.mcap"
    path.write_bytes(bytes(data))
    with LogReader(whole_log) as log:
        whole = list(log)
    with LogReader(path) as log:
        left = list(log)
    assert log.damage
    assert len(whole) - 20 <= len(left) < len(whole)
    assert left[-1] == whole[-1]


def test_a_log_cut_off_as_a_source_delivers_then_tells(whole_log: Path, tmp_path: Path) -> None:
    data = whole_log.read_bytes()
    path = tmp_path / "cut.mcap"
    path.write_bytes(data[: len(data) // 2])
    source = LogSource().open(str(path), open_timeout_ms=1, read_timeout_ms=1)
    pictures = 0
    with pytest.raises(DataError, match="is damaged"):  # noqa: PT012
        while source.read() is not None:
            pictures += 1
    assert 8 <= pictures <= 16


_KILLED_WRITER = """
import sys, json
sys.path.insert(0, {root!r})
from tests.recording.test_recording import *
sink = RecorderSink(Path(sys.argv[1]), labels=LABELS)
for seq in range(10**6):
    sink.write(*published(seq))
    print(seq, flush=True)
"""


def test_a_killed_writer_loses_at_most_its_last_chunk(tmp_path: Path) -> None:
    path = tmp_path / "killed.mcap"
    code = _KILLED_WRITER.format(root=str(ROOT))
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    last = -1
    while last < 60:
        last = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with LogReader(path) as log:
        images = [record.sequence for record in log if record.topic.endswith("/image")]
    sample = cv2.imencode(".jpg", picture(0), [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    in_a_chunk = 64 * 1024 / (len(sample) * 4 / 3)  # base64
    assert images == list(range(len(images)))
    assert len(images) >= last - in_a_chunk
    assert log.damage


def ros(kind: str, topic: str, body: bytes) -> Record:
    return Record(topic, kind, "cdr", body, 0, 0, 0)


def cdr_image(order: str, encoding: bytes, size: tuple[int, int], step: int, data: bytes) -> bytes:
    """A sensor_msgs/msg/Image by hand; the frame id "cam" leaves padding before the next number."""
    head = b"\0\1\0\0" if order == "<" else b"\0\0\0\0"
    body = struct.pack(order + "iII", 1, 2, 4) + b"cam\0" + struct.pack(order + "II", size[1], size[0])
    body += struct.pack(order + "I", len(encoding) + 1) + encoding + b"\0"
    body += struct.pack("B", 0)
    body += bytes(-len(body) % 4) + struct.pack(order + "II", step, len(data)) + data
    return head + body


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("encoding", ["bgr8", "rgb8", "mono8", "bgra8"])
def test_ros_images_of_either_byte_order_with_padded_rows(order: str, encoding: str) -> None:
    wanted = picture(3, 40, 20)
    pixels = {
        "bgr8": wanted,
        "rgb8": wanted[..., ::-1],
        "mono8": wanted[..., :1],
        "bgra8": np.dstack([wanted, np.zeros((20, 40), np.uint8)]),
    }[encoding]
    rows = np.zeros((20, 40 * pixels.shape[2] + 5), np.uint8)
    rows[:, :-5] = pixels.reshape(20, -1)
    body = cdr_image(order, encoding.encode(), (40, 20), rows.shape[1], rows.tobytes())
    got = decode_image(ros("sensor_msgs/msg/Image", "/image", body))
    expected = np.repeat(wanted[..., :1], 3, 2) if encoding == "mono8" else wanted
    assert np.array_equal(got, expected)


def test_yuv_bayer_and_sixteen_bit_images_have_the_right_colour() -> None:
    blue = np.full((8, 8, 3), (200, 30, 20), np.uint8)
    yuv = cv2.cvtColor(blue, cv2.COLOR_BGR2YUV)[0, 0]
    uyvy = bytes([yuv[1], yuv[0], yuv[2], yuv[0]]) * 32
    assert np.abs(bgr_pixels(RawImage(8, 8, "yuv422", 16, memoryview(uyvy))).astype(int) - blue).max() < 40
    mosaic = np.empty((8, 8), np.uint8)
    mosaic[0::2, 0::2], mosaic[0::2, 1::2], mosaic[1::2, 0::2], mosaic[1::2, 1::2] = 20, 30, 30, 200
    assert np.array_equal(
        bgr_pixels(RawImage(8, 8, "bayer_rggb8", 8, memoryview(mosaic.tobytes())))[2:-2, 2:-2],
        blue[2:-2, 2:-2],
    )
    deep = np.full((4, 4), 0x7F01, "<u2").tobytes()
    assert (bgr_pixels(RawImage(4, 4, "mono16", 8, memoryview(deep))) == 0x7F).all()


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def test_foxglove_protobuf_images() -> None:
    wanted = picture(1, 64, 32)
    png = cv2.imencode(".png", wanted)[1].tobytes()
    stamp = b"\x0a\x02\x08\x05"
    compressed = stamp + b"\x12" + varint(len(png)) + png + b"\x1a\x03png" + b"\x22\x03cam"
    got = decode_image(Record("/c", "foxglove.CompressedImage", "protobuf", compressed, 0, 0, 0))
    assert np.array_equal(got, wanted)
    data = wanted.tobytes()
    raw = b"\x15" + struct.pack("<I", 64) + b"\x1d" + struct.pack("<I", 32) + b"\x22\x04bgr8"
    raw += b"\x2d" + struct.pack("<I", 192) + b"\x32" + varint(len(data)) + data
    assert np.array_equal(decode_image(Record("/r", "foxglove.RawImage", "protobuf", raw, 0, 0, 0)), wanted)


@settings(max_examples=150, deadline=None)
@given(
    data=st.binary(max_size=80),
    kind=st.sampled_from(["sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"]),
)
def test_garbage_in_a_message_is_told_as_such(data: bytes, kind: str) -> None:
    with pytest.raises(ValueError, match="/t message 0"):
        decode_image(ros(kind, "/t", data))
    with pytest.raises(ValueError, match="/t message 0"):
        decode_image(Record("/t", "foxglove.RawImage", "protobuf", data, 0, 0, 0))


def test_several_topics_must_be_named_and_missing_ones_are_told(tmp_path: Path) -> None:
    path = tmp_path / "two.mcap"
    sink = RecorderSink(path, labels=LABELS)
    for seq in range(4):
        message, frame = published(seq)
        sink.write(message, frame)
        other = Detections.none("rear", seq, frame.t_capture_ns)
        sink.write(Published(other, 1, 0, False, "normal", "d"), frame)
    sink.close()
    with pytest.raises(RequestError, match="2 image topics") as error:
        open_source(str(path), source_types())
    assert "/camera/front/image (4), /camera/rear/image (4)" in error.value.seen
    with pytest.raises(RequestError, match="no image topic") as error:
        open_source(f"{path}?topic=/camera/frnt/image", source_types())
    assert "did you mean '/camera/front/image'" in error.value.fix
    assert open_source(f"{path}?topic=/camera/rear/image", source_types()).read() is not None
    with pytest.raises(RequestError, match="unknown parameter"):
        open_source(f"{path}?topik=1", source_types())


def test_logs_without_pictures_and_other_files_are_refused(tmp_path: Path) -> None:
    log = LogWriter(tmp_path / "empty.mcap", {})
    log.write("/t", {"title": "T", "type": "object"}, {"a": 1}, log_time_ns=1, publish_time_ns=1)
    log.close()
    with pytest.raises(DataError, match="holds no images"):
        open_source(str(tmp_path / "empty.mcap"), source_types())
    (tmp_path / "text.mcap").write_text("not a log")
    with pytest.raises(DataError, match="is not an MCAP file"):
        open_source(str(tmp_path / "text.mcap"), source_types())


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("{d}/no/such/folder/x.mcap", "cannot be written"),
        ("{d}/x.mcap?qualty=3", "unknown parameter 'qualty'"),
        ("{d}/x.mcap?quality=0", "'quality' is not valid"),
        ("{d}/x.mcap?image=jpg", "'image' is not valid"),
        ("{d}/x.mcp", "no sink writes"),
    ],
)
def test_a_wrong_recorder_uri_is_told(tmp_path: Path, uri: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        open_sink(uri.format(d=tmp_path), sink_types(), labels=LABELS)


@pytest.mark.material
@pytest.mark.parametrize("topic", ["/compressed_image", "/image"])
def test_a_real_ros2_recording(material: Path, topic: str) -> None:
    path = material / "mcap" / "rerun_rosbag2_all_sensor_msgs.mcap"
    source = open_source(f"{path}?topic={topic}", source_types())
    got = source.read()
    assert got is not None and got[0].shape == (480, 640, 3) and got[0].dtype == np.uint8
    assert got[0].std() > 10
    assert source.read() is None


def test_the_reader_takes_logs_of_any_chunking(tmp_path: Path) -> None:
    from mcap.writer import CompressionType, Writer

    for compression in CompressionType:
        for chunked in (True, False):
            stream = io.BytesIO()
            writer = Writer(stream, compression=compression, use_chunking=chunked, repeat_channels=False)
            writer.start()
            channel = writer.register_channel("/x", "json", writer.register_schema("X", "jsonschema", b"{}"))
            for index in range(10):
                writer.add_message(channel, index, b"{}", index)
            writer.finish()
            (tmp_path / "x.mcap").write_bytes(stream.getvalue())
            with LogReader(tmp_path / "x.mcap") as log:
                assert [record.log_time_ns for record in log] == list(range(10))
            assert log.damage == ""
