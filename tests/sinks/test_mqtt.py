"""Alerts over a real broker that goes away and comes back, from a real daemon that is killed meanwhile."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest

from avq.daemon import sink_types
from avq.daemon.publisher import SinkWorker
from avq.errors import DataError, RequestError
from avq.sinks import open_sink
from avq.sinks.mqtt_target import mqtt_target
from avq.sinks.spool import Spool, Waiting
from avq.types import StageTimes
from tests.conftest import ROOT
from tests.recording.recording_kit import published
from tests.sinks.broker import Broker, Listener, wait_until

TOPIC = "fleet/17/alerts"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path / "broker")
    broker.start()
    yield broker
    broker.stop(signal.SIGKILL)


@pytest.fixture
def listener(broker: Broker) -> Iterator[Listener]:
    listener = Listener(broker.port, TOPIC)
    yield listener
    listener.close()


def daemon(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.sinks.alert_daemon", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def logged_alerts(log: Path) -> list[dict]:  # type: ignore[type-arg]
    """What the flight record of the run says was raised, in order."""
    from avq.recording import LogReader

    with LogReader(log) as records:
        events = [json.loads(record.data) for record in records if record.topic == "/avq/events"]
    return [event for event in events if event["kind"] == "alert"]


def spooled(folder: Path) -> list[str]:
    found = []
    for path in sorted(folder.glob("*.json")):
        with suppress(FileNotFoundError):  # delivered meanwhile
            found.append(json.loads(path.read_bytes())["id"])
    return found


@pytest.mark.slow
def test_a_broker_that_goes_and_comes_back_hears_each_alert_in_order(
    tmp_path: Path, broker: Broker, listener: Listener
) -> None:
    log, spool = tmp_path / "run.mcap", tmp_path / "spool"
    uri = f"mqtt://127.0.0.1:{broker.port}/{TOPIC}?spool={spool}"
    with daemon("100", "0", uri, f"{log}?image=none") as process:
        assert wait_until(lambda: len(listener.heard) >= 5)
        broker.stop()
        assert wait_until(lambda: len(spooled(spool)) >= 8)
        broker.start()
        count = len(listener.heard)
        assert wait_until(lambda: len(listener.heard) >= count + 12)
        assert wait_until(
            lambda: len(spooled(spool)) <= 1
        )  # a run that ends delivers for seconds, not for long
        process.send_signal(signal.SIGTERM)
        summary = json.loads(process.communicate(timeout=90)[0])
    raised = [alert["id"] for alert in logged_alerts(log)]
    assert len(set(raised)) == len(raised) >= 15
    row = next(sink for sink in summary["sinks"] if sink["name"] == "MqttSink")
    assert (row["delivered"], row["waiting"], row["dropped"], row["missed"]) == (len(raised), 0, 0, 0)
    assert wait_until(lambda: len(listener.heard) >= len(raised) and not listener.status[-1])
    assert list(dict.fromkeys(listener.ids)) == raised
    assert len(listener.ids) - len(raised) <= 1, (
        "a second copy of the one on its way when the connection broke"
    )
    assert listener.status[0]
    assert set(listener.heard[0]) >= {"id", "alert", "camera", "time", "label", "score", "box_xyxy_px"}


@pytest.mark.slow
def test_what_a_killed_daemon_had_not_delivered_comes_with_the_same_ids(
    tmp_path: Path, broker: Broker, listener: Listener
) -> None:
    spool = tmp_path / "spool"
    uri = f"mqtt://127.0.0.1:{broker.port}/{TOPIC}?spool={spool}"
    with daemon("60", "0", uri) as process:
        assert wait_until(lambda: len(listener.heard) >= 3)
        broker.stop()
        assert wait_until(lambda: len(spooled(spool)) >= 6)
        process.kill()
        process.communicate()
    waiting = spooled(spool)
    broker.start()
    with daemon("600000", "0", uri) as process:
        assert wait_until(lambda: set(listener.ids) >= set(waiting) and spooled(spool) == [])
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=90)
    heard = list(dict.fromkeys(listener.ids))
    assert [name for name in heard if name in waiting] == waiting
    assert spooled(spool) == []


def test_the_will_tells_that_a_killed_daemon_is_gone(
    tmp_path: Path, broker: Broker, listener: Listener
) -> None:
    uri = f"mqtt://127.0.0.1:{broker.port}/{TOPIC}?spool={tmp_path / 'spool'}"
    with daemon("1000", "0", uri) as process:
        assert wait_until(lambda: listener.status[-1:] == [True])
        process.kill()
        process.communicate()
    assert wait_until(lambda: listener.status[-1:] == [False])


@pytest.mark.parametrize(
    ("uri", "what"),
    [
        ("mqtt:///topic", "host and a topic"),
        ("mqtt://host", "host and a topic"),
        ("mqtt://host/fleet/#", "without wildcards"),
        ("mqtt://me:secret@host/t", "password does not belong"),
        ("mqtt://host/t?password_env=NOT_SET_ANYWHERE", "without a user"),
        ("mqtt://me@host/t?password_env=NOT_SET_ANYWHERE", "is not set"),
        ("mqtt://me@host/t?password_file=/no/such/file", "cannot be read"),
        ("mqtt://host:99999/t", "not an MQTT address"),
        ("mqtt://host/t?spol=x", "unknown parameter 'spol'"),
        ("mqtt://host/t?spool_messages=1", "spool_messages"),
    ],
)
def test_wrong_addresses_are_told_before_anything_is_opened(uri: str, what: str) -> None:
    with pytest.raises(RequestError, match=what) as caught:
        mqtt_target(uri, {})
    assert "secret" not in str(caught.value)


def test_a_password_comes_from_a_file_or_the_environment(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("from file\n")
    target = mqtt_target(f"mqtts://me@broker/a/b?password_file={tmp_path / 'password'}", {"HOME": "/h"})
    assert (target.host, target.port, target.topic, target.tls) == ("broker", 8883, "a/b", True)
    assert (target.user, target.password) == ("me", "from file")
    assert mqtt_target("mqtt://me@b/t?password_env=P", {"P": "word"}).password == "word"
    assert mqtt_target("mqtt://b/t", {"STATE_DIRECTORY": "/var/lib/avq"}).spool.is_relative_to("/var/lib/avq")


def test_a_broker_that_wants_a_password_gets_it(tmp_path: Path) -> None:
    passwords = tmp_path / "passwords"
    broker = Broker(tmp_path / "broker", "allow_anonymous false", f"password_file {passwords}")
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "me", "word"], check=True)
    passwords.chmod(0o600)
    (tmp_path / "word").write_text("word")
    broker.start()
    try:
        uri = f"mqtt://me@127.0.0.1:{broker.port}/t?spool={tmp_path / 'spool'}&password_file={tmp_path / 'word'}"
        sink = open_sink(uri, sink_types(), labels=())
        sink.write_event({"kind": "alert", "id": "1"})  # type: ignore[attr-defined]
        assert wait_until(lambda: sink.report()["delivered"] == 1)  # type: ignore[attr-defined]
        sink.close()
    finally:
        broker.stop(signal.SIGKILL)


def test_the_spool_is_bounded_whole_and_of_one_process(tmp_path: Path) -> None:
    spool = Spool(tmp_path, limit=4)
    (tmp_path / "0000000000000099.new").write_bytes(b"half")
    for number in range(7):
        spool.add(str(number).encode())
    with pytest.raises(DataError, match="another process uses the spool"):
        Spool(tmp_path, limit=4)
    spool.close()
    again = Spool(tmp_path, limit=4)
    bodies = []
    while (waiting := again.oldest()) is not None:
        bodies.append(waiting.body)
        again.remove(waiting.number)
    # the very oldest may be on its way out, so the next ones went
    assert (bodies, spool.dropped, sorted(tmp_path.glob("*.new"))) == ([b"0", b"4", b"5", b"6"], 3, [])
    again.close()


def test_what_the_disk_refuses_waits_in_memory_and_is_saved_later(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", limit=6)
    spool.add(b"a")
    (tmp_path / "spool").rename(tmp_path / "gone")
    for body in (b"b", b"c", b""):
        spool.add(body)
    assert (len(spool), spool.unsaved, spool.dropped) == (4, 3, 0)
    (tmp_path / "gone").rename(tmp_path / "spool")
    for number, body in enumerate((b"a", b"b"), 1):
        assert spool.oldest() == Waiting(number, body)
        spool.remove(number)
    assert spool.unsaved == 2
    spool.add(b"d")
    assert spool.unsaved == 0
    spool.close()
    again = Spool(tmp_path / "spool", limit=6)
    assert [path.read_bytes() for path in sorted((tmp_path / "spool").glob("*.json"))] == [b"c", b"", b"d"]
    again.close()


def test_memory_that_stands_in_for_a_disk_is_bounded_too(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", limit=3)
    shutil.rmtree(tmp_path / "spool")
    for number in range(10):
        spool.add(str(number).encode())
    assert (len(spool), spool.unsaved, spool.dropped) == (3, 3, 7)
    spool.close()


def test_only_alerts_leave_the_car(tmp_path: Path, broker: Broker, listener: Listener) -> None:
    uri = f"mqtt://127.0.0.1:{broker.port}/{TOPIC}?spool={tmp_path / 'spool'}"
    sink = open_sink(uri, sink_types(), labels=())
    assert not sink.wants_pixels
    sink.write_event({"kind": "camera_stalled", "t_ns": 1})  # type: ignore[attr-defined]
    sink.write_event({"kind": "alert", "id": "1"})  # type: ignore[attr-defined]
    assert wait_until(lambda: listener.ids == ["1"])
    sink.close()
    assert listener.ids == ["1"]


def test_a_broker_that_accepts_and_never_answers_costs_no_alert_and_no_frame(tmp_path: Path) -> None:
    pytest.importorskip("paho.mqtt", reason='paho-mqtt is not installed (pip install "avq[mqtt]")')
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"mqtt://127.0.0.1:{silent.getsockname()[1]}/t?spool={tmp_path}"
        worker = SinkWorker(open_sink(uri, sink_types(), labels=()), "mqtt", 8)
        for seq in range(50):
            message, frame = published(seq)
            worker.offer(message, frame, StageTimes(1, 1, 1, 1), wait=False)
        for number in range(5):
            worker.event(cast(Any, {"kind": "alert", "id": str(number)}))
        report = worker.close(60)
    assert (report.missed, report.error, report.numbers["waiting"]) == (0, "", 5)
    assert spooled(tmp_path) == ["0", "1", "2", "3", "4"]
