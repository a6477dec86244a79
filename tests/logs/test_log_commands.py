"""``avq log`` on whole logs: what is cut, merged, converted and blurred is exactly that."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from mcap.reader import make_reader
from mcap.writer import Writer

from avq.cli import cli
from avq.logs import cut
from avq.recording.images import decode_image, is_image
from tests.logs.log_kit import BOXES, frames_of, picture, records, write_drive

ROS = "mcap/rerun_rosbag2_all_sensor_msgs.mcap"


def avq(*arguments: str | Path, code: int = 0) -> dict:  # type: ignore[type-arg]
    result = CliRunner().invoke(cli, ["log", *map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drive") / "drive.mcap"
    write_drive(path, range(40), events={10: "alert_raised", 12: "mode", 30: "alert_raised"})
    return path


def test_info_tells_topics_rates_and_span(drive: Path) -> None:
    told = avq("info", drive)
    assert (told["kind"], told["whole"], told["messages"], told["seconds"]) == ("mcap", True, 163, 3.9)
    rates = {row["topic"]: (row["messages"], row["hz"]) for row in told["topics"]}
    assert rates["/camera/front/image"] == (40, 10.0) and rates["/avq/events"][0] == 3


def test_a_part_by_time_has_all_messages_of_its_frames_and_no_others(drive: Path, tmp_path: Path) -> None:
    answer = avq("cut", drive, "-o", tmp_path / "part.mcap", "--from", "1", "--to", "1.95")
    assert frames_of(tmp_path / "part.mcap") == list(range(10, 20))
    inside = [r for r in records(drive) if 1e9 <= r.log_time_ns - 1_700_000_001_005_000_000 <= 1.95e9]
    assert records(tmp_path / "part.mcap") == inside and answer["messages"] == len(inside)


def test_around_events_joins_windows_that_touch(drive: Path, tmp_path: Path) -> None:
    around = ("--around", "alert_raised", "--around", "mode", "--before", "0.3", "--after", "0.31")
    answer = avq("cut", drive, "-o", tmp_path / "part.mcap", *around)
    assert frames_of(tmp_path / "part.mcap") == [*range(7, 16), *range(27, 34)]
    assert len(answer["windows"]) == 2


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--around", "alert"), "alert_raised"),
        (("--topic", "/camera/front/imge"), "/camera/front/image"),
        (("--from", "9", "--to", "10"), "widen the time range"),
        (("--from", "2", "--to", "1"), "--from A --to B"),
        (("--bundle", "b.avq"), "--blur"),
        (("--blur", "--blur-class", "cra"), "car"),
    ],
)
def test_a_wrong_cut_says_what_would_be_right_and_writes_nothing(
    drive: Path, tmp_path: Path, flags: Any, said: str
) -> None:
    problem = avq("cut", drive, "-o", tmp_path / "part.mcap", *flags, code=2)["error"]
    assert said in problem["fix"] and not list(tmp_path.iterdir())


def test_an_output_never_replaces_its_input(drive: Path) -> None:
    before = drive.read_bytes()
    assert "another file" in avq("cut", drive, "-o", drive, code=2)["error"]["fix"]
    assert drive.read_bytes() == before


def test_metadata_of_logs_of_one_file_name_is_merged_whole() -> None:
    logs: Any = [
        SimpleNamespace(path=Path(car) / "drive.mcap", metadata={"rec": {"who": car}})
        for car in ("car1", "car2", "car3", "car3")
    ]
    tables = cut._metadata(logs)
    assert sorted(table["who"] for table in tables.values()) == ["car1", "car2", "car3"]
    (note,) = cut._metadata_notes(logs)
    assert "car3/drive.mcap" in note


def test_parts_merge_to_the_whole_also_where_they_overlap(drive: Path, tmp_path: Path) -> None:
    avq("cut", drive, "-o", tmp_path / "a.mcap", "--to", "2.5")
    avq("cut", drive, "-o", tmp_path / "b.mcap", "--from", "1.5")
    answer = avq("merge", tmp_path / "b.mcap", tmp_path / "a.mcap", "-o", tmp_path / "whole.mcap")
    key = lambda r: (r.log_time_ns, r.topic, r.sequence, r.data)  # noqa: E731
    assert sorted(map(key, records(tmp_path / "whole.mcap"))) == sorted(map(key, records(drive)))
    assert answer["held_twice"] > 30 and answer["notes"] == []
    times = [r.log_time_ns for r in records(tmp_path / "whole.mcap")]
    assert times == sorted(times) and avq("verify", tmp_path / "whole.mcap")["whole"]


def test_blurring_hides_people_and_vehicles_and_nothing_else(drive: Path, tmp_path: Path) -> None:
    answer = avq("cut", drive, "-o", tmp_path / "blurred.mcap", "--blur", "--to", "0.5")
    assert answer["blur"]["boxes"] == {"car": 6, "pedestrian": 6} and answer["blur"]["limits"]
    for record in records(tmp_path / "blurred.mcap"):
        if is_image(record):
            pixels, before = decode_image(record), picture(record.sequence)
            changed = np.any(pixels != before, axis=2)
            for x0, y0, x1, y1 in BOXES[:2].astype(int):
                assert pixels[y0:y1, x0:x1].std() < 0.4 * before[y0:y1, x0:x1].std()
                changed[y0 - 12 : y1 + 12, x0 - 12 : x1 + 12] = False
            assert not changed.any(), "outside the boxes of people and vehicles every pixel stays"


def test_what_cannot_be_blurred_does_not_leave_the_car(drive: Path, tmp_path: Path) -> None:
    path = tmp_path / "odd.mcap"
    with path.open("wb") as file:
        writer = Writer(file)
        writer.start()
        writer.add_attachment(1, 1, "thumbnail.jpg", "image/jpeg", b"a picture")
        for record in records(drive):
            if record.topic.endswith("/detections") and record.sequence % 2:
                continue
            add(writer, record.topic, record.schema_name, record.message_encoding, record)
        add(writer, "/video", "foxglove.CompressedVideo", "protobuf", record)
        add(writer, "/unknown", "", "raw", record)
        add(writer, "/imu", "sensor_msgs/msg/Imu", "cdr", record)
        writer.finish()
    answer = avq("cut", path, "-o", tmp_path / "out.mcap", "--blur")
    left = records(tmp_path / "out.mcap")
    assert {r.sequence % 2 for r in left if is_image(r)} == {0}
    assert {r.topic for r in left} >= {"/imu"} and not {r.topic for r in left} & {"/video", "/unknown"}
    assert set(answer["blur"]["left_out"]) == {"/camera/front/image", "/video", "/unknown"}
    with (tmp_path / "out.mcap").open("rb") as file:
        assert list(make_reader(file).iter_attachments()) == []


def add(writer: Any, topic: Any, schema: Any, encoding: Any, record: Any) -> None:
    number = writer.register_schema(schema, "x", b"") if schema else 0
    channel = writer.register_channel(topic, encoding, number)
    writer.add_message(channel, record.log_time_ns, record.data, record.publish_time_ns, record.sequence)


def test_a_foreign_log_is_blurred_only_with_a_bundle(material: Path, tmp_path: Path) -> None:
    problem = avq("cut", material / ROS, "-o", tmp_path / "out.mcap", "--blur", code=2)["error"]
    assert "--bundle" in problem["fix"]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_ros_messages_survive_the_way_to_rosbag2_and_back(
    material: Path, tmp_path: Path, storage: str
) -> None:
    pytest.importorskip("rosbags", reason="rosbags is not installed")
    avq("convert", material / ROS, "-o", tmp_path / "bag", "--storage", storage)
    avq("convert", tmp_path / "bag", "-o", tmp_path / "back.mcap")
    core = lambda r: (r.topic, r.schema_name, r.message_encoding, r.log_time_ns, r.data)  # noqa: E731
    assert sorted(map(core, records(tmp_path / "back.mcap"))) == sorted(map(core, records(material / ROS)))


def test_a_flight_record_becomes_ros_messages_that_rosbags_reads(drive: Path, tmp_path: Path) -> None:
    highlevel = pytest.importorskip("rosbags.highlevel", reason="rosbags is not installed")
    answer = avq("convert", drive, "-o", tmp_path / "bag", "--storage", "sqlite3")
    assert answer["messages"] == 163 and answer["left_out"] == {}
    with highlevel.AnyReader([tmp_path / "bag"]) as bag:
        kinds = {c.topic: c.msgtype for c in bag.connections}
        assert kinds["/camera/front/image"] == "sensor_msgs/msg/CompressedImage"
        boxes = [c for c in bag.connections if c.msgtype == "vision_msgs/msg/Detection2DArray"]
        _, t_ns, data = next(bag.messages(boxes))
        found = bag.deserialize(data, boxes[0].msgtype).detections
    assert t_ns == 1_700_000_001_005_000_000 and len(found) == 3
    assert (found[0].bbox.center.position.x, found[0].bbox.size_y) == (40.0, 40.0)
    assert found[0].results[0].hypothesis.class_id == "car"


def test_a_bag_whose_recorder_was_killed_is_read_without_its_metadata(drive: Path, tmp_path: Path) -> None:
    pytest.importorskip("rosbags", reason="rosbags is not installed")
    avq("convert", drive, "-o", tmp_path / "bag", "--storage", "sqlite3")
    (tmp_path / "bag" / "metadata.yaml").unlink()
    database = sqlite3.connect(tmp_path / "bag" / "bag.db3")
    database.execute("PRAGMA journal_mode=wal")
    database.execute("DELETE FROM messages WHERE id > 100")
    database.commit()
    assert avq("info", tmp_path / "bag")["messages"] == 100, "what only the write-ahead file holds counts too"
    database.close()
