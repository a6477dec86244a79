"""The watchdog's food comes from the publish path: it stops if and only if publication stops."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast
from urllib.request import urlopen

import pytest

from avq.daemon import FrameResult, RestartPolicy, RunOptions, RunSummary, serve_bundle
from avq.daemon.modes import WARM_UPS
from avq.daemon.observer import NullObserver, RunView
from avq.daemon.receiver import Receiver
from avq.daemon.side_task import SideTaskWorker
from avq.daemon.systemd import SystemdNotifier
from avq.recording import RecorderSink
from avq.sinks import CallbackSink, JsonLinesSink
from avq.types import U8, Frame, LatencyBudget, Published, RawOutputs
from tests.daemon.daemon_kit import LABELS, null_parts
from tests.daemon.manager import Manager
from tests.faults.scenarios import resources

WATCHDOG_S = 0.4
#: A receiver that stands is believed for a second: so many signs of life, four per interval of the watchdog.
BELIEVED = 12
#: Ends a test that hangs; no machine is so busy.
HANG_S = 90
SOURCE = "scene://drive?fps=25&size=96x64"


class OverError(Exception):
    """Ends a run from its own thread."""


@dataclass
class Gate:
    """Lets everybody through until it is shut; ``held`` once somebody stands before it."""

    opened: threading.Event = field(default_factory=threading.Event)
    held: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.opened.set()

    def __call__(self, *_: object) -> None:
        if not self.opened.is_set():
            self.held.set()
        self.opened.wait()


class Session:
    """An engine behind a gate."""

    engine, precision = "gated", "f32"

    def __init__(self, gate: Gate) -> None:
        self._gate, self._inner = gate, null_parts().session

    def infer(self, tensor: U8) -> RawOutputs:
        self._gate()
        return self._inner.infer(tensor)

    def run(self, feeds: Mapping[str, Any]) -> RawOutputs:
        return self.infer(feeds[""])

    def close(self) -> None:
        """Nothing to free."""


class Recorder:
    """The flight recorder behind a gate."""

    def __init__(self, path: Path, gate: Gate) -> None:
        self._inner, self._gate = RecorderSink(path, labels=LABELS), gate
        self.wants_pixels = self._inner.wants_pixels

    def write(self, message: Published, frame: Frame | None) -> None:
        self._gate()
        self._inner.write(message, frame)

    def close(self) -> None:
        self._inner.close()


class Publisher:
    """A sink that the loop itself cannot get past."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    @property
    def wants_pixels(self) -> bool:
        self._gate()
        return False

    def write(self, message: Published, frame: Frame | None) -> None:
        """Nothing to keep."""

    def close(self) -> None:
        """Nothing to free."""


class Worker:
    """A shadow or a drift watch behind a gate."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def look(self, frame: Frame, served: object, bundle: str) -> list[dict[str, Any]]:
        self._gate()
        return []

    def serves(self, bundle: object) -> None:
        """Any will do."""

    def state(self) -> Mapping[str, Any]:
        return {}

    def close(self) -> None:
        """Nothing to free."""


class RunObserver(NullObserver):
    """Says when frames flow, and ends the run."""

    def __init__(self) -> None:
        self.flows, self.over, self.frames = threading.Event(), threading.Event(), 0
        self.run: RunView | None = None
        self.page: RunObserver | NullObserver = NullObserver()

    def on_open(self, run: RunView) -> None:
        self.run = run
        self.page.on_open(run)

    def on_tick(self) -> None:
        if self.over.is_set():
            raise OverError

    def on_frame(self, frame: Frame, turn: FrameResult) -> None:
        self.page.on_frame(frame, turn)
        self.frames += 1
        if self.frames == 8:
            self.flows.set()


class Service:
    """One run on a thread of its own, with a manager that listens."""

    def __init__(self, manager: Manager, gate: Gate, folder: Path) -> None:
        self.manager, self.gate, self.folder = manager, gate, folder
        self.observer = RunObserver()
        self.sinks: list[Any] = []
        self.unread_fd = -1
        self.parts = null_parts()
        self.options = RunOptions(
            notifier=SystemdNotifier.from_environment(manager.environment(WATCHDOG_S)),
            observer=self.observer,
            restarts=RestartPolicy(max_restarts=2),
        )
        self.summary: RunSummary | BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.summary = serve_bundle(
                self.parts,
                sources={"front": SOURCE},
                sinks=self.sinks,
                budget=LatencyBudget(10**9),
                options=self.options,
            )
        except BaseException as error:
            self.summary = error
        self.observer.flows.set()

    def start(self) -> None:
        self._thread.start()
        assert self.observer.flows.wait(HANG_S) and self.summary is None, self.summary

    def end(self) -> None:
        self.gate.opened.set()
        self.observer.over.set()
        if self.unread_fd >= 0:
            os.close(self.unread_fd)
            self.unread_fd = -1
        self._thread.join(HANG_S)
        assert not self._thread.is_alive()
        self.options.notifier.close()

    @property
    def pid(self) -> int:
        assert self.observer.run is not None
        return self.observer.run.pids()["front"]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    manager, service = Manager(tmp_path / "notify"), None
    try:
        yield (service := Service(manager, Gate(), tmp_path))
    finally:
        assert service is not None
        service.end()
        manager.close()


def block_engine(service: Service) -> None:
    service.parts = replace(service.parts, session=Session(service.gate))


def block_publisher(service: Service) -> None:
    service.sinks = [Publisher(service.gate)]


def block_receiver(service: Service) -> None:
    hear = Receiver._on_message

    def gated(self: Receiver, camera: Any) -> None:
        service.gate()
        hear(self, camera)

    service.monkeypatch.setattr(Receiver, "_on_message", gated)  # type: ignore[attr-defined]


def block_recorder(service: Service) -> None:
    service.sinks = [Recorder(service.folder / "log.mcap", service.gate)]


def block_callback(service: Service) -> None:
    service.sinks = [CallbackSink(service.gate, wants_pixels=False)]


def block_json_lines(service: Service) -> None:
    """A pipe that nobody reads is full from the start."""
    service.unread_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    try:
        while True:
            os.write(write_fd, b"\0" * 4096)
    except BlockingIOError:
        os.set_blocking(write_fd, True)
    service.sinks = [JsonLinesSink(os.fdopen(write_fd, "wb"), LABELS)]


def break_sink(service: Service) -> None:
    def breaks(*_: object) -> None:
        if not service.gate.opened.is_set():
            raise OSError("the disk is gone")

    service.sinks = [
        CallbackSink(breaks, wants_pixels=False),
        CallbackSink(lambda *_: None, wants_pixels=False),
    ]


def block_aside(service: Service) -> None:
    service.options = replace(
        service.options, side_tasks=(SideTaskWorker("shadow", 1, cast(Any, Worker(service.gate))),)
    )


def block_listener(service: Service) -> None:
    service.options = replace(service.options, on_event=service.gate)


@pytest.mark.parametrize("block", [block_engine, block_publisher, block_receiver])
def test_a_blocked_publish_path_starves_the_watchdog(
    service: Service, block: Callable[[Service], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    service.monkeypatch = monkeypatch  # type: ignore[attr-defined]
    block(service)
    service.start()
    assert service.manager.hear(HANG_S, until="WATCHDOG") == 1
    service.gate.opened.clear()
    assert service.gate.held.wait(HANG_S)
    service.manager.hear(0)  # what was said before
    signs = 0
    while signs <= BELIEVED and (more := service.manager.hear(3 * WATCHDOG_S, until="WATCHDOG")):
        signs += more
    assert signs <= BELIEVED
    service.gate.opened.set()
    assert service.manager.hear(HANG_S, until="WATCHDOG", times=3) == 3


@pytest.mark.parametrize(
    "block",
    [block_recorder, block_callback, block_json_lines, break_sink, block_aside, block_listener],
)
def test_whatever_is_beside_the_publish_path_may_hang(
    service: Service, block: Callable[[Service], None]
) -> None:
    block(service)
    service.start()
    service.gate.opened.clear()
    frames = service.observer.frames
    service.manager.hear(WATCHDOG_S)
    assert service.manager.hear(HANG_S, until="WATCHDOG", times=6) == 6
    assert service.observer.frames > frames


def test_a_page_that_hangs_starves_nobody(service: Service) -> None:
    site = pytest.importorskip("avq.web.server", reason="the extra 'web' is not installed")
    hung = threading.Event()

    def hang() -> dict[str, Any]:
        hung.set()
        service.gate()
        return {}

    def ask() -> None:
        with suppress(OSError):
            urlopen(f"{address}/status", timeout=HANG_S).read()

    with site.open_site("127.0.0.1", 0, "") as (live_state, address):
        service.observer.page = live_state
        service.start()
        live_state.run = replace(live_state.run, counts_by_camera=hang)
        service.gate.opened.clear()
        asking = threading.Thread(target=ask)
        asking.start()
        assert hung.wait(HANG_S)
        frames = service.observer.frames
        service.manager.hear(WATCHDOG_S)
        assert service.manager.hear(HANG_S, until="WATCHDOG", times=6) == 6
        assert service.observer.frames > frames
        service.end()
        asking.join(HANG_S)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_capture_process_that_dies_or_hangs_is_replaced_and_the_watchdog_fed(
    service: Service, number: signal.Signals
) -> None:
    service.start()
    pid = service.pid
    os.kill(pid, number)
    frames = service.observer.frames + 20  # more than were on their way
    for _ in range(int(HANG_S / WATCHDOG_S * 4)):
        assert service.manager.hear(HANG_S, until="WATCHDOG") == 1
        if service.observer.frames > frames:
            break
    assert service.observer.frames > frames and service.pid != pid


def test_a_camera_that_stays_away_is_accounted_for(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    before = resources()
    service.start()
    os.kill(service.pid, signal.SIGKILL)
    monkeypatch.setattr("avq.daemon.capture.sys.executable", "/nonexistent")  # no process to be had any more
    assert service.manager.hear(HANG_S, until="WATCHDOG", times=20) == 20
    service.end()
    assert resources()["memfds"] == before["memfds"]


def test_ready_comes_after_the_warm_up_and_stopping_before_the_end(service: Service) -> None:
    warm: list[list[str]] = []

    class Warming(Session):
        def infer(self, tensor: U8) -> RawOutputs:
            if len(warm) < WARM_UPS:
                service.manager.hear(0)
                warm.append(service.manager.keys())
            return super().infer(tensor)

    service.parts = replace(service.parts, session=Warming(service.gate))
    service.start()
    assert "EXTEND_TIMEOUT_USEC" in warm[0] and not any("READY" in keys for keys in warm)
    ending = threading.Thread(target=service.end)
    ending.start()
    service.manager.hear(HANG_S, until="STOPPING")
    ending.join(HANG_S)
    service.manager.hear(0.2)
    keys = service.manager.keys()
    assert keys.index("EXTEND_TIMEOUT_USEC") < keys.index("READY") < keys.index("STOPPING")
    assert "WATCHDOG" not in keys[: keys.index("READY")]
    assert "WATCHDOG" not in keys[keys.index("STOPPING") :]
