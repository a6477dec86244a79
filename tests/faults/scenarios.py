"""Seeded faults of network cameras, played against real capture processes, several cameras at once."""

from __future__ import annotations

import gc
import random
import re
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from avq.daemon.capture_protocol import CaptureSettings
from avq.daemon.inbox import SharedInbox
from avq.daemon.receiver import Receiver
from avq.daemon.supervisor import RestartPolicy
from tests.faults.fault_camera import Connection, FaultCamera

KINDS = ("silent", "stall", "reset", "drip", "garbage", "jitter", "headers_only", "away")
#: Where opening hangs on purpose; elsewhere no machine may be so busy that a good camera is given up.
_OPEN_TIMEOUT_MS, _PATIENT_MS = 1500, 30_000
_HANG_WHILE_OPENING = ("silent", "headers_only")
_AGAIN = 12  # frames after the last fault that show the camera is back
_LIMIT_S = 180.0
_SILENT = re.compile(r"no frame for (\d+) ms, ([\d.]+) frame periods")


@dataclass(frozen=True)
class Scenario:
    """One camera's life."""

    seed: int
    kind: str
    script: list[Connection]


def scenario(seed: int) -> Scenario:
    """Every kind in turn, its numbers drawn."""
    chance = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    after = chance.randint(12, 40)
    good = Connection("none")
    scripts: dict[str, list[Connection]] = {
        "silent": [Connection("stall", after), Connection("silent"), good],
        "headers_only": [Connection("reset", after), Connection("headers_only"), good],
        "jitter": [Connection("jitter", jitter_s=chance.uniform(0.05, 0.3))],
        "away": [Connection("away", after, pause_s=chance.uniform(0.1, 1.0)), good],
    }
    default = [Connection(kind, after), good]  # type: ignore[arg-type]
    return Scenario(seed, kind, scripts.get(kind, default))


class Metronome:
    """How late this machine wakes a sleeping thread: what is taken off before a delay is judged."""

    def __init__(self) -> None:
        self._late: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            due_s = time.monotonic() + 0.005
            time.sleep(0.005)
            now_s = time.monotonic()
            self._late.append((now_s, now_s - due_s))

    def late_s(self, start_s: float, end_s: float) -> float:
        """All lateness that fell into a span, and that of the first tick after it."""
        return sum(late for at, late in self._late if start_s <= at and at - late - 0.005 <= end_s)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()


@dataclass
class Life:
    """What was seen of one camera."""

    frames_ns: list[int] = field(default_factory=list)
    seqs: list[int] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    def times(self, kind: str) -> list[int]:
        return [event["t_ns"] for event in self.events if event["kind"] == kind]

    def back(self, connections: int) -> bool:
        """Frames have come again after the last fault of the script."""
        resumed = self.times("camera_resumed")
        if connections < 2:
            return True
        return bool(resumed) and sum(at > resumed[-1] for at in self.frames_ns) >= _AGAIN


@dataclass
class Played:
    """One run: every camera's life, its restarts, and the books."""

    lives: dict[str, Life]
    restarts: dict[str, int]
    balanced: bool
    metronome: Metronome
    connections: dict[str, int]


def play(scenarios: list[Scenario], *, least_s: float = 3.0) -> Played:
    """Let the cameras live together until every fault is over, at least ``least_s``."""
    cameras = {f"{one.kind}-{one.seed}": FaultCamera(one.script, one.seed) for one in scenarios}
    wanted = {f"{one.kind}-{one.seed}": len(one.script) for one in scenarios}
    inbox, metronome = SharedInbox(), Metronome()
    settings = [
        CaptureSettings(name, camera.uri, open_timeout_ms=_open_timeout_ms(name))
        for name, camera in cameras.items()
    ]
    policy = RestartPolicy(max_restarts=20)
    receiver = Receiver(settings, inbox, dict.fromkeys(cameras, policy))
    lives: dict[str, Life] = defaultdict(Life)
    try:
        start_s = time.monotonic()
        while (spent_s := time.monotonic() - start_s) < _LIMIT_S:
            _listen(inbox, receiver, lives)
            done = all(
                camera.connections >= wanted[name] and lives[name].back(wanted[name])
                for name, camera in cameras.items()
            )
            if done and spent_s > least_s:
                break
        restarts = receiver.restarts
    finally:
        receiver.stop()
        inbox.drop_waiting()
        metronome.close()
        for camera in cameras.values():
            camera.close()
    account = inbox.counts()
    reached = {name: camera.connections for name, camera in cameras.items()}
    return Played(lives, restarts, account.balanced and account.in_flight == 0, metronome, reached)


def _open_timeout_ms(name: str) -> int:
    return _OPEN_TIMEOUT_MS if name.startswith(_HANG_WHILE_OPENING) else _PATIENT_MS


def _listen(inbox: SharedInbox, receiver: Receiver, lives: dict[str, Life]) -> None:
    arrival = inbox.next(0.05)
    while (event := receiver.events.next()) is not None:
        lives[str(event.get("camera", ""))].events.append({**event})
    if arrival is not None:
        life = lives[arrival.frame.camera]
        life.frames_ns.append(arrival.frame.t_capture_ns)
        life.seqs.append(arrival.frame.seq)
        inbox.finished(arrival.frame.camera)
        arrival.release()


def report_periods(life: Life, stalled_ns: int, metronome: Metronome) -> float:
    """Frame periods from the last frame to the report, as the machine's lateness allowed to see them."""
    before = [at for at in life.frames_ns if at <= stalled_ns]
    if len(before) < 6:
        return 0.0  # never open long enough to have a period
    last_ns, recent = before[-1], before[-31:]
    period_s = (recent[-1] - recent[0]) / 1e9 / (len(recent) - 1)
    waited_s = (stalled_ns - last_ns) / 1e9
    return (waited_s - metronome.late_s(last_ns / 1e9, stalled_ns / 1e9)) / period_s


def silent_periods(life: Life) -> list[float]:
    """Frame periods of silence after which each stall was told, of the true period or the one that was seen.

    As the supervisor counted them: time in which it could not look is none.
    """
    told: list[float] = []
    begun_ns = 0
    for event in life.events:
        if event["kind"] == "camera_restarted":
            begun_ns = event["t_ns"]
        said = _SILENT.fullmatch(event["reason"]) if event["kind"] == "camera_stalled" else None
        if said is not None and any(begun_ns < at <= event["t_ns"] for at in life.frames_ns):
            told.append(min(float(said[1]) / 1e3 * Connection.fps, float(said[2])))
    return told


def replaced_s(life: Life) -> list[float]:
    """Seconds from each report of a stall to the start of the next capture process, where it took one."""
    spans: list[float] = []
    stalled_ns: int | None = None
    for event in life.events:
        if event["kind"] == "camera_stalled":
            stalled_ns = event["t_ns"]
        elif event["kind"] == "camera_resumed":
            stalled_ns = None  # it came back by itself
        elif event["kind"] == "camera_restarted" and stalled_ns is not None:
            spans.append((event["t_ns"] - stalled_ns) / 1e9)
            stalled_ns = None
    return spans


def left_over(before: dict[str, int]) -> dict[str, int]:
    """What is held beyond ``before``, by kind. The kernel may let go late: a minute is given."""
    end_s = time.monotonic() + 60
    while True:
        more = {kind: count - before[kind] for kind, count in resources().items() if count > before[kind]}
        if not more or time.monotonic() > end_s:
            return more
        time.sleep(0.05)


def resources() -> dict[str, int]:
    """Processes, descriptors and memory files that this process holds, garbage left out."""
    gc.collect()
    names = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            names.append(str(entry.readlink()))
        except OSError:  # the listing's own descriptor
            continue
    return {
        "children": len(psutil.Process().children()),
        "descriptors": len(names),
        "memfds": sum("memfd:" in name for name in names),
    }
