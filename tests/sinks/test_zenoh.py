"""Boxes over Zenoh to a peer in another process, over loopback."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from avq.daemon import sink_types
from avq.daemon.publisher import SinkReport, SinkWorker
from avq.errors import MachineError, RequestError
from avq.sinks import open_sink
from avq.sinks.zenoh import zenoh_settings
from avq.types import StageTimes
from tests.conftest import ROOT
from tests.ports import free_port
from tests.recording.recording_kit import LABELS, published
from tests.sinks.broker import wait_until

pytest.importorskip("zenoh", reason='eclipse-zenoh is not installed (pip install "avq[zenoh]")')
pytest.importorskip("rosbags", reason='rosbags is not installed (pip install "avq[zenoh]")')


def test_a_peer_in_another_process_reads_ros_messages() -> None:
    endpoint = f"tcp/127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "tests.sinks.zenoh_peer", endpoint, "fleet/17/**"]
    peer = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert peer.stdin is not None and peer.stdout is not None
    try:
        assert peer.stdout.readline() == "READY\n"
        sink = open_sink(f"zenoh://fleet/17?connect={endpoint}&scout=false", sink_types(), labels=LABELS)
        offset_ns = time.time_ns() - time.monotonic_ns()
        first = published(0)[0]
        heard = _publish_until_heard(sink, peer, first)
        sink.close()
    finally:
        peer.stdin.close()
        peer.wait(60)
        peer.stdout.close()
    assert (heard["key"], heard["camera"]) == ("fleet/17/front/detections", "front")
    assert abs(heard["unix_ns"] - offset_ns - first.detections.t_capture_ns) < 1_000_000_000
    assert heard["found"] == [
        {"label": "car", "score": 0.75, "center": [10.0, 15.0], "size": [20.0, 30.0]},
        {"label": "person", "score": 0.75, "center": [20.0, 25.0], "size": [20.0, 30.0]},
    ]


def _publish_until_heard(sink: Any, peer: Any, message: Any) -> dict[str, Any]:
    """The link and the subscription take a moment; messages before them are nobody's."""
    import selectors

    with selectors.DefaultSelector() as selector:
        selector.register(peer.stdout, selectors.EVENT_READ)
        for _ in range(1200):
            sink.write(message, None)
            if selector.select(0.05):
                return json.loads(peer.stdout.readline())
    raise AssertionError("the peer heard nothing in 60 s")


@pytest.mark.slow
def test_what_a_slow_listener_misses_is_counted() -> None:
    endpoint = f"tcp/127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "tests.sinks.zenoh_peer", f"{endpoint}#so_rcvbuf=65536", "a/**", "10"]
    peer = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert peer.stdin is not None and peer.stdout is not None
    try:
        assert peer.stdout.readline() == "READY\n"
        uri = f"zenoh://a?connect={endpoint}#so_sndbuf=65536&scout=false"
        sink = open_sink(uri, sink_types(), labels=LABELS)
        _publish_until_heard(sink, peer, published(0)[0])
        lines: list[str] = []
        reading = threading.Thread(target=lines.extend, args=(peer.stdout,))
        reading.start()
        worker = SinkWorker(sink, "zenoh", 8)
        offered = 0
        while worker.report().missed < 50 and offered < 20_000:  # what lies between holds some hundreds
            worker.offer(*published(1, boxes=100), StageTimes(1, 1, 1, 1), wait=False)
            offered += 1
            time.sleep(0.001)
        # Zenoh does not say when all of it is out: it is when all of it was heard, and then the sink is closed.
        assert wait_until(
            lambda: done(worker.report(), offered) and heard_of(lines) >= worker.report().written
        )
        report = worker.close(60)
    finally:
        peer.stdin.close()
        peer.wait(60)
    reading.join(60)
    peer.stdout.close()
    assert (report.written + report.missed, report.error) == (offered, "") and report.missed > 0
    assert heard_of(lines) == report.written


def heard_of(lines: list[str]) -> int:
    """Messages of the flood; those before it have fewer boxes."""
    return sum(len(json.loads(line)["found"]) == 100 for line in list(lines))


def done(report: SinkReport, offered: int) -> bool:
    """Whether nothing waits and nothing is in the sink's hands."""
    return report.written + report.missed == offered


def test_without_any_listener_nothing_waits_and_nothing_is_missed() -> None:
    sink = open_sink(
        f"zenoh://a/b?listen=tcp/127.0.0.1:{free_port()}&scout=false", sink_types(), labels=LABELS
    )
    worker = SinkWorker(sink, "zenoh", 256)
    for seq in range(200):
        message, frame = published(seq % 8)
        worker.offer(message, frame, StageTimes(1, 1, 1, 1), wait=False)
    report = worker.close(60)
    assert (report.written, report.missed, report.error) == (200, 0, "")


def test_an_endpoint_that_cannot_be_listened_on_is_told(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="Zenoh cannot be opened"):
        open_sink("zenoh://a?listen=tcp/192.0.2.1:7447&scout=false", sink_types(), labels=LABELS)


@pytest.mark.parametrize(
    ("uri", "what"),
    [
        ("zenoh://", "needs a key"),
        ("zenoh://fleet/**", "without wildcards"),
        ("zenoh://a?conect=tcp/h:1", "unknown parameter 'conect'"),
        ("zenoh://a?mode=router", "parameter 'mode'"),
        ("zenoh://a?connect=10.0.0.2:7447", "not a Zenoh endpoint"),
        ("zenoh://a?scout=yes", "parameter 'scout'"),
    ],
)
def test_wrong_addresses_are_told_before_anything_is_opened(uri: str, what: str) -> None:
    with pytest.raises(RequestError, match=what):
        zenoh_settings(uri)
