"""An alert is delivered or still in the spool, whatever the broker answers; and the reason is named."""

from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from avq.daemon import sink_types
from avq.daemon.publisher import Publisher
from avq.sinks import open_sink
from avq.sinks.mqtt_attempts import Attempts, Trouble
from avq.sinks.spool import Spool
from tests.sinks.broker import Broker, Listener, wait_until
from tests.sinks.fake_broker import Answer, FakeBroker

pytest.importorskip("paho.mqtt", reason='paho-mqtt is not installed (pip install "avq[mqtt]")')

TOPIC = "fleet/17/alerts"
NAMED_WITHIN_S = 5.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avq.sinks.mqtt_attempts._FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr("avq.sinks.mqtt._SETTLE_S", 0.2)
    monkeypatch.setattr("avq.sinks.mqtt._FAREWELL_S", 0.5)


@contextmanager
def sink_of(port: int, spool: Path, query: str = "", scheme: str = "mqtt", user: str = "") -> Iterator[Any]:
    uri = f"{scheme}://{user}127.0.0.1:{port}/{TOPIC}?spool={spool}{query}"
    sink = open_sink(uri, sink_types(), labels=())
    try:
        yield sink
    finally:
        sink.close()


def send(sink: Any, *names: str) -> None:
    for name in names:
        sink.write_event({"kind": "alert", "id": name})


def waiting(spool: Path) -> list[str]:
    return [json.loads(path.read_bytes())["id"] for path in sorted(spool.glob("*.json"))]


@contextmanager
def fake(answer: Callable[[str, int], Answer], connack: int | None = 0) -> Iterator[FakeBroker]:
    broker = FakeBroker(answer, connack)
    yield broker
    broker.close()


@pytest.mark.parametrize("code", [0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99])
def test_a_refused_alert_stays_in_the_spool_and_the_reason_is_named(
    tmp_path: Path, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    with fake(lambda name, copies: code) as broker, sink_of(broker.port, tmp_path) as sink:
        send(sink, "a", "b")
        assert wait_until(lambda: broker.copies.count("a") >= 2 and broker.copies.count("b") >= 1)
        assert wait_until(lambda: sink.report()["refused"] >= 3)
        report = sink.report()
        assert (report["delivered"], report["waiting"], report["connected"]) == (0, 2, 1)
        assert report["refused"] >= 3 and f"0x{code:02X}" in sink.cause
    assert waiting(tmp_path) == ["a", "b"]
    lines = [record.message for record in caplog.records if "refuses an alert" in record.message]
    assert [line.startswith("2 alerts are not delivered") for line in lines] == [False, True], (
        "once per cause"
    )


def test_one_alert_that_is_refused_holds_up_no_other(tmp_path: Path) -> None:
    names = [str(number) for number in range(10)]
    with (
        fake(lambda name, copies: 0x99 if name == "0" else 0) as broker,
        sink_of(broker.port, tmp_path) as sink,
    ):
        send(sink, *names)
        assert wait_until(lambda: broker.taken == names[1:])
        assert wait_until(lambda: sink.report()["waiting"] == 1 and broker.copies.count("0") >= 3)
    assert waiting(tmp_path) == ["0"] and sorted(broker.taken) == names[1:]


def test_what_was_refused_is_delivered_when_the_broker_changes_its_mind(tmp_path: Path) -> None:
    names = [str(number) for number in range(20)]
    with fake(lambda name, copies: 0x87) as broker, sink_of(broker.port, tmp_path) as sink:
        send(sink, *names)
        assert wait_until(lambda: sink.report()["refused"] >= 4)
        broker.answer = lambda name, copies: 0
        assert wait_until(lambda: sink.report()["delivered"] == 20)
        assert sink.cause == "" and sorted(broker.taken) == sorted(names), "each exactly once"
    assert waiting(tmp_path) == []


@pytest.mark.parametrize(
    "answer",
    [("disconnect", 0x95), pytest.param(("close", 0), marks=pytest.mark.slow)],
    ids=["too large", "closed"],
)
def test_an_alert_that_ends_the_connection_holds_up_no_other(tmp_path: Path, answer: Answer) -> None:
    with (
        fake(lambda name, copies: answer if name == "bad" else 0) as broker,
        sink_of(broker.port, tmp_path) as sink,
    ):
        send(sink, "bad", "a", "b")
        assert wait_until(lambda: broker.taken == ["a", "b"])
    assert waiting(tmp_path) == ["bad"]


def test_a_second_copy_comes_after_a_broken_connection_only(tmp_path: Path) -> None:
    names = [str(number) for number in range(8)]
    breaking = {"3"}
    with (
        fake(lambda name, copies: ("close", 0) if name in breaking and copies == 1 else 0) as broker,
        sink_of(broker.port, tmp_path) as sink,
    ):
        send(sink, *names)
        assert wait_until(lambda: sink.report()["delivered"] == 8)
    assert broker.taken == names and waiting(tmp_path) == []
    assert broker.copies == [name for name in names for _ in range(2 if name in breaking else 1)]


@pytest.mark.parametrize(
    ("connack", "named"),
    [
        (0x87, "refuses the connection of this user and password: not authorized (0x87)"),
        (0x86, "bad user name or password (0x86)"),
        (0x88, "server unavailable"),
        (0x9A, "retain not supported"),
        (-1, "closed the connection before it answered"),
        pytest.param(None, "no answer within", marks=pytest.mark.slow),
    ],
)
def test_why_there_is_no_connection_is_reported_once_and_in_time(
    tmp_path: Path, connack: int | None, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[dict[str, Any]] = []
    began_s = time.monotonic()
    with (
        fake(lambda name, copies: 0, connack) as broker,
        sink_of(broker.port, tmp_path, user="car@") as sink,
    ):
        sink.report_to(events.append)
        send(sink, "a")
        assert wait_until(lambda: named in sink.cause, NAMED_WITHIN_S - (time.monotonic() - began_s))
        if connack is not None:
            assert wait_until(lambda: broker.connections >= 2)
    assert [(event["kind"], named in event["reason"]) for event in events] == [("alerts_wait", True)]
    assert (
        sum(named in record.message for record in caplog.records if "not delivered" not in record.message)
        == 1
    )
    assert waiting(tmp_path) == ["a"]


def test_a_place_without_a_broker_and_a_name_without_a_host_are_reported(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with sink_of(port, tmp_path / "a") as sink:
        assert wait_until(lambda: "nothing accepts connections" in sink.cause, NAMED_WITHIN_S)


def test_status_and_events_of_a_run_have_the_cause(tmp_path: Path) -> None:
    heard: list[Any] = []
    with fake(lambda name, copies: 0x97) as broker:
        uri = f"mqtt://127.0.0.1:{broker.port}/{TOPIC}?spool={tmp_path}"
        publisher = Publisher([open_sink(uri, sink_types(), labels=())], heard.append)
        publisher.event({"kind": "alert", "t_ns": 1, "id": "a"})  # type: ignore[typeddict-unknown-key,typeddict-item]
        assert wait_until(lambda: "0x97" in publisher.reports()[0].cause)
        row = publisher.reports()[0].as_json()
        assert row["error"] == "" and "refuses an alert" in row["cause"]
        publisher.close()
    assert [event["kind"] for event in heard if event["kind"].startswith("alerts_")][-1] == "alerts_wait"


def test_client_ids_differ_by_vehicle_and_by_spool_and_stay_over_restarts(tmp_path: Path) -> None:
    with fake(lambda name, copies: 0) as broker:
        for spool, vehicle in (("a", "car-1"), ("a", "car-1"), ("a", "car-2"), ("b", "car-1")):
            count = len(broker.client_ids)
            with sink_of(broker.port, tmp_path / spool, f"&vehicle={vehicle}"):
                assert wait_until(lambda: len(broker.client_ids) > count)  # noqa: B023
    first, again, other_vehicle, other_spool = broker.client_ids[:4]
    assert first == again and len({first, other_vehicle, other_spool}) == 3


def test_causes_that_alternate_are_reported_once_each(caplog: pytest.LogCaptureFixture) -> None:
    trouble = Trouble("b:1883", "spool")
    with caplog.at_level(logging.INFO, "avq.sinks.mqtt"):
        for _ in range(50):
            trouble.begins("the connection was lost")
            trouble.begins("no answer in time")
            trouble.ends()
    assert len(caplog.records) == 3


def test_pauses_after_refusals_grow_and_are_bounded() -> None:
    attempts, now_s = Attempts(), 100.0
    pauses = []
    for number in range(12):
        attempts.refused(number, now_s)
        after_s = attempts.next_s(now_s)
        assert not attempts.may_send(after_s - 1e-6) and attempts.may_send(after_s)
        pauses.append(after_s - now_s)
        now_s = after_s
    assert pauses == sorted(pauses) and pauses[-1] == 30.0
    attempts.keep({11})
    assert attempts.all_refused() == {11}


def test_a_full_spool_keeps_the_message_on_its_way(tmp_path: Path) -> None:
    spool = Spool(tmp_path, limit=3)
    for number in range(3):
        spool.add(str(number).encode())
    on_its_way = spool.oldest(passing={1})
    assert on_its_way is not None and on_its_way.body == b"1"
    spool.add(b"3")
    assert on_its_way.number in spool.numbers()
    spool.remove(on_its_way.number)
    spool.remove(on_its_way.number)  # harmless
    assert len(spool) == 2
    spool.close()


@contextmanager
def mosquitto(folder: Path, *lines: str) -> Iterator[Broker]:
    broker = Broker(folder, *lines)
    broker.start()
    yield broker
    broker.stop(signal.SIGKILL)


def test_mosquitto_denies_the_topic(tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic read #\ntopic write other/#\n")
    with (
        mosquitto(tmp_path / "broker", "allow_anonymous true", f"acl_file {acl}") as broker,
        sink_of(broker.port, tmp_path / "spool") as sink,
    ):
        send(sink, "a", "b")
        assert wait_until(lambda: "not authorized (0x87)" in sink.cause, NAMED_WITHIN_S)
    assert waiting(tmp_path / "spool") == ["a", "b"]


@pytest.mark.slow
def test_mosquitto_takes_no_long_messages(tmp_path: Path) -> None:
    with (
        mosquitto(tmp_path / "broker", "allow_anonymous true", "message_size_limit 200") as broker,
        sink_of(broker.port, tmp_path / "spool") as sink,
    ):
        listener = Listener(broker.port, TOPIC)
        sink.write_event({"kind": "alert", "id": "long", "reason": "x" * 300})
        send(sink, "a", "b")
        assert wait_until(lambda: listener.ids == ["a", "b"])
        listener.close()
    assert waiting(tmp_path / "spool") == ["long"]


def test_mosquitto_wants_another_password(tmp_path: Path) -> None:
    passwords, word = tmp_path / "passwords", tmp_path / "word"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "car", "right"], check=True)
    passwords.chmod(0o600)
    word.write_text("wrong")
    with (
        mosquitto(tmp_path / "broker", "allow_anonymous false", f"password_file {passwords}") as broker,
        sink_of(broker.port, tmp_path / "spool", f"&password_file={word}", user="car@") as sink,
    ):
        send(sink, "a")
        assert wait_until(
            lambda: "refuses the connection of this user and password" in sink.cause, NAMED_WITHIN_S
        )
    assert waiting(tmp_path / "spool") == ["a"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificate")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", "/CN=avq", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem",
         "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("trusted", [False, True])
def test_mosquitto_shows_a_certificate(tmp_path: Path, certificate: Path, trusted: bool) -> None:
    lines = (f"certfile {certificate}/cert.pem", f"keyfile {certificate}/key.pem", "allow_anonymous true")
    query = f"&ca_file={certificate}/cert.pem" if trusted else ""
    with (
        mosquitto(tmp_path / "broker", *lines) as broker,
        sink_of(broker.port, tmp_path / "spool", query, "mqtts") as sink,
    ):
        send(sink, "a")
        if trusted:
            assert wait_until(lambda: sink.report()["delivered"] == 1)
        else:
            assert wait_until(lambda: "its certificate is not trusted: self" in sink.cause, NAMED_WITHIN_S)
    assert waiting(tmp_path / "spool") == ([] if trusted else ["a"])


def test_a_plain_broker_does_not_speak_tls(tmp_path: Path) -> None:
    with (
        mosquitto(tmp_path / "broker") as broker,
        sink_of(broker.port, tmp_path / "spool", "", "mqtts") as sink,
    ):
        assert wait_until(lambda: sink.cause != "", NAMED_WITHIN_S + 1)


@pytest.mark.slow
def test_mosquitto_killed_again_and_again_loses_none_of_200_alerts(tmp_path: Path) -> None:
    names = [f"{number:03d}" for number in range(200)]
    with mosquitto(tmp_path / "broker") as broker:
        listener = Listener(broker.port, TOPIC)
        with sink_of(broker.port, tmp_path / "spool") as sink:
            for index, name in enumerate(names):
                send(sink, name)
                if index % 60 == 30:
                    wait_until(lambda: len(listener.heard) > 5)
                    broker.stop(signal.SIGKILL if index % 40 else signal.SIGTERM)
                    broker.start()
            assert wait_until(lambda: sink.report()["waiting"] == 0)
        assert wait_until(lambda: set(listener.ids) | set(waiting(tmp_path / "spool")) >= set(names))
        copies = len(listener.ids) - len(set(listener.ids))
        listener.close()
    assert copies <= 4, "at most one per broken connection"
