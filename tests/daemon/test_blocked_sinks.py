"""Each sink blocked by its real other side: frames flow, the watchdog is fed, misses are counted, SIGTERM ends it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from avq.daemon.run_events import ENDED, STARTED
from tests.conftest import ROOT
from tests.daemon.manager import Manager
from tests.ports import free_port
from tests.sinks.broker import Broker, wait_until

pytest.importorskip("avq.web.app", reason='the page is not installed (pip install "avq[web]")')

FPS, SPOOLED_FPS = 150, 30
HANG_S = 90  # ends a test that hangs; no machine is so busy
WATCHDOG_S = 0.4
Row = dict[str, Any]


@dataclass
class Case:
    """One sink and how it is blocked.

    Attributes:
        uri: of the sink.
        block: called while frames flow, with the page's address.
        suffers: whether the status shows that the sink is blocked.
        row: what the summary must say of the sink, besides that nothing went uncounted.
        ready: whether the status shows that the sink may be blocked now.
        fps: of the camera. A spool syncs each alert to the disk, which may be slow; other queues fill by speed.
    """

    uri: str
    block: Callable[[str], None]
    suffers: Callable[[dict[str, Any]], bool]
    row: Callable[[Row], bool]
    ready: Callable[[dict[str, Any]], bool] = lambda status: True
    fps: int = FPS


class Daemon:
    """The driver, its manager and its page."""

    def __init__(self, folder: Path, fps: int, *sinks: str) -> None:
        self.manager = Manager(folder / "notify")
        command = [sys.executable, "-m", "tests.daemon.sinks_driver", f"numbered://{fps}", *sinks]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **self.manager.environment(WATCHDOG_S)},
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()

    def status(self) -> dict[str, Any]:
        with urlopen(f"{self.address}/status", timeout=HANG_S) as answer:
            return json.loads(answer.read())

    @property
    def published(self) -> int:
        return int(self.status()["frames"]["published"])

    def end(self) -> dict[str, Any]:
        """The summary, after SIGTERM: sinks have four seconds to drain, whatever state they are in."""
        self.process.send_signal(signal.SIGTERM)
        out = self.process.communicate(timeout=HANG_S)[0]
        assert self.process.returncode == 0
        return json.loads(out.splitlines()[-1])

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.manager.close()


def sink_in(status: dict[str, Any]) -> Row:
    """What the status or summary says of the sink between the watch for alerts and the log."""
    return status["sinks"][1]


def misses(status: dict[str, Any]) -> bool:
    return bool(sink_in(status)["missed"] > 0)


def delivers(status: dict[str, Any]) -> bool:
    return bool(sink_in(status)["delivered"] > 0)


def waits(status: dict[str, Any]) -> bool:
    return bool(sink_in(status)["waiting"] > 20)


def nothing(address: str) -> None:
    """It was never any better."""


@contextmanager
def silent_broker(folder: Path) -> Iterator[Case]:
    """It accepts connections and never says a word."""
    pytest.importorskip("paho.mqtt", reason='paho-mqtt is not installed (pip install "avq[mqtt]")')
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"mqtt://127.0.0.1:{silent.getsockname()[1]}/t?spool={folder / 'spool'}"
        yield Case(uri, nothing, waits, lambda row: row["delivered"] == row["missed"] == 0, fps=SPOOLED_FPS)


@contextmanager
def started_broker(folder: Path) -> Iterator[Broker]:
    broker = Broker(folder / "broker")
    broker.start()
    try:
        yield broker
    finally:
        broker.stop(signal.SIGKILL)


@contextmanager
def frozen_broker(folder: Path) -> Iterator[Case]:
    """mosquitto, stopped by SIGSTOP: its connections stay."""
    with started_broker(folder) as broker:
        uri = f"mqtt://127.0.0.1:{broker.port}/t?spool={folder / 'spool'}"
        yield Case(
            uri, lambda _: broker.freeze(), waits, lambda row: row["delivered"] > row["missed"] == 0,
            ready=delivers, fps=SPOOLED_FPS,
        )  # fmt: skip


@contextmanager
def lost_spool(folder: Path) -> Iterator[Case]:
    """The disk of the spool is gone: what cannot be saved is delivered from memory."""
    with started_broker(folder) as broker:
        spool = folder / "spool"
        uri = f"mqtt://127.0.0.1:{broker.port}/t?spool={spool}"

        def block(address: str) -> None:
            spool.rename(folder / "gone")
            broker.freeze()

        def suffers(status: dict[str, Any]) -> bool:
            return waits(status) and sink_in(status)["unsaved"] > 20

        yield Case(uri, block, suffers, lambda row: row["missed"] == 0, ready=delivers, fps=SPOOLED_FPS)


@contextmanager
def stuck_spool(folder: Path) -> Iterator[Case]:
    """Opening a file of the spool never returns: a FIFO without a reader, as a network disk without its server."""
    spool = folder / "spool"

    def block(address: str) -> None:
        spool.rename(folder / "gone")
        (folder / "stuck").mkdir()
        for number in range(1, 5000):
            os.mkfifo(folder / "stuck" / f"{number:016d}.new")
        (folder / "stuck").rename(spool)

    with started_broker(folder) as broker:
        uri = f"mqtt://127.0.0.1:{broker.port}/t?spool={spool}"
        yield Case(uri, block, misses, lambda row: row["error"] == "did not finish in time")


@contextmanager
def frozen_listener(folder: Path) -> Iterator[Case]:
    """A Zenoh peer, stopped by SIGSTOP; the kernel holds little for it."""
    pytest.importorskip("zenoh", reason='eclipse-zenoh is not installed (pip install "avq[zenoh]")')
    pytest.importorskip("rosbags", reason='rosbags is not installed (pip install "avq[zenoh]")')
    endpoint = f"tcp/127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "tests.sinks.zenoh_peer", f"{endpoint}#so_rcvbuf=65536", "car/**"]
    peer = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert peer.stdin is not None and peer.stdout is not None
    try:
        assert peer.stdout.readline() == "READY\n"

        def block(address: str) -> None:
            assert peer.stdout is not None
            assert peer.stdout.readline()  # it listens
            peer.send_signal(signal.SIGSTOP)

        uri = f"zenoh://car?connect={endpoint}#so_sndbuf=65536&scout=false"
        yield Case(uri, block, misses, lambda row: row["written"] > 0)
    finally:
        peer.kill()
        peer.communicate()


@contextmanager
def unread_pipe(folder: Path) -> Iterator[Case]:
    """JSON lines into a pipe that somebody holds open and does not read."""
    os.mkfifo(folder / "lines")
    reader = os.open(folder / "lines", os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    try:
        error = "did not finish in time"
        yield Case(f"jsonl:{folder / 'lines'}", nothing, misses, lambda row: row["error"] == error)
    finally:
        os.close(reader)


@contextmanager
def unopened_pipe(folder: Path) -> Iterator[Case]:
    """JSON lines into a FIFO that nobody ever opens."""
    os.mkfifo(folder / "lines")
    error = "did not finish in time"
    yield Case(f"jsonl:{folder / 'lines'}", nothing, misses, lambda row: row["error"] == error)


@contextmanager
def full_device(folder: Path) -> Iterator[Case]:
    """JSON lines into a device that takes nothing."""
    full = "OSError: [Errno 28] No space left on device"
    yield Case("jsonl:/dev/full", nothing, misses, lambda row: row["error"] == full and row["written"] == 0)


def remove_for_good(folder: Path) -> None:
    """Removes a folder that another process still writes into."""
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def lost_folder(folder: Path) -> Iterator[Case]:
    """A log that rotates, in a folder that is gone."""
    logs = folder / "logs"
    logs.mkdir()

    def suffers(status: dict[str, Any]) -> bool:
        return bool(sink_in(status)["lost"] > 0)

    uri = f"{logs / 'log.mcap'}?image=none&rotate_s=0.1"
    yield Case(uri, lambda _: remove_for_good(logs), suffers, lambda row: row["error"] == "")


@contextmanager
def lost_file(folder: Path) -> Iterator[Case]:
    """JSON lines into a file that is gone with its folder: it lives on until it is closed."""
    lines = folder / "lines"
    lines.mkdir()

    def goes_on(status: dict[str, Any]) -> bool:
        return bool(sink_in(status)["written"] > 200)

    uri = f"jsonl:{lines / 'of_the_run'}"
    yield Case(
        uri, lambda _: shutil.rmtree(lines), goes_on, lambda row: row["error"] == "" and row["missed"] == 0
    )


@contextmanager
def deaf_viewer(folder: Path) -> Iterator[Case]:
    """An event stream that is asked for and not read."""
    with ExitStack() as stack:

        def block(address: str) -> None:
            host, port = address.removeprefix("http://").split(":")
            viewer = stack.enter_context(socket.socket())
            viewer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            viewer.connect((host, int(port)))
            viewer.sendall(f"GET /events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())

        def suffers(status: dict[str, Any]) -> bool:
            return bool(status["viewers"]["dropped"] == 1)

        yield Case(str(folder / "lines.jsonl"), block, suffers, lambda row: row["missed"] == 0)


CASES = [
    silent_broker, frozen_broker, lost_spool, stuck_spool, frozen_listener, unread_pipe, unopened_pipe, full_device,
    lost_folder, lost_file, deaf_viewer,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("blocked", CASES)
def test_a_blocked_sink_costs_no_frame_and_no_sign_of_life(tmp_path: Path, blocked: Any) -> None:
    with blocked(tmp_path) as case:
        daemon = Daemon(tmp_path, case.fps, case.uri, f"{tmp_path / 'log.mcap'}?image=none")
        try:
            assert wait_until(lambda: daemon.published > 20 and case.ready(daemon.status()))
            case.block(daemon.address)
            assert wait_until(lambda: case.suffers(daemon.status()))
            before = daemon.published
            daemon.manager.hear(0.1)  # what was said before
            assert daemon.manager.hear(HANG_S, until="WATCHDOG", times=4) == 4
            assert daemon.published > before
            summary = daemon.end()
        finally:
            daemon.kill()
    row, log = sink_in(summary), summary["sinks"][2]
    assert case.row(row), row
    assert summary["captured"] == summary["published"] + sum(summary["dropped"].values())
    # Late by a second: a machine that stands for one may make a frame so, a sink in the way makes all of them so.
    assert summary["misses"] * 20 <= summary["published"]
    assert log["missed"] == 0 and log["written"] == summary["published"]
    told = recorded_events(tmp_path / "log.mcap") if case.uri.startswith("mqtt") else summary["published"]
    assert row["written"] + row["missed"] == told


def recorded_events(log: Path) -> int:
    """Events that every sink gets: the recorder has them, and the two that frame the run."""
    from avq.recording import LogReader

    framing = (STARTED.encode(), ENDED.encode())
    with LogReader(log) as records:
        events = [record.data for record in records if record.topic == "/avq/events"]
    return sum(not any(kind in data for kind in framing) for data in events)
