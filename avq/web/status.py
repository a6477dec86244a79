"""State of a run as one JSON object, for /status and the page; liveness and readiness."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from avq.daemon.inbox import FrameCounts
from avq.daemon.metrics import Histogram
from avq.daemon.publisher import SinkRow
from avq.process import resident_bytes
from avq.web.live_state import CameraState, ChangeRow, FrameRow, LiveState, ViewerCounts

#: The loop goes round at least every 50 ms without frames; with one it takes as long as the engine does.
STANDS_S = 5.0
#: A run without any published frame for so long (or for three of its usual gaps) is not ready, whatever the cause.
SILENT_S = 5.0


def not_alive(live_state: LiveState, now_ns: int) -> str:
    """Return why a supervisor should end the process; '' when it should not."""
    if live_state.run is None or live_state.over:
        return ""
    stood_s = (now_ns - live_state.last_tick_ns) / 1e9
    return f"the loop has been blocked for {stood_s:.1f} s" if stood_s > STANDS_S else ""


def not_ready(live_state: LiveState, now_ns: int) -> str:
    """Return why messages are not reliable now; '' when they are."""
    if live_state.over:
        return "the run is over"
    if live_state.run is None:
        return "the bundle is being opened and warmed up"
    cameras = [camera for camera in list(live_state.cameras.values()) if camera.seen_ns]
    if not cameras:
        return "no frame has been published yet"
    silent_s = (now_ns - max(camera.seen_ns for camera in cameras)) / 1e9
    usual_s = max(camera.gap_ns for camera in cameras) / 1e9
    if silent_s > max(SILENT_S, 3 * usual_s):
        return f"no frame has been published for {silent_s:.1f} s"
    return not_alive(live_state, now_ns)


_SYS = Path("/sys")
_KEPT_S = 2.0


@dataclass(frozen=True, slots=True)
class Machine:
    """Readings of the machine.

    Attributes:
        temperatures_c: degrees Celsius per thermal zone; empty where there are none.
        clocks_hz: current and highest frequency per CPU; empty where the kernel has none.
        memory_bytes: resident memory of this process.
        load: of the last minute, in processes; cpus: that this process may use.
    """

    temperatures_c: dict[str, float]
    clocks_hz: dict[str, tuple[float, float]]
    memory_bytes: int
    load: float
    cpus: int


class MachineReader:
    """Reads the machine at most every two seconds.

    Args:
        sys_folder: where sysfs is mounted.
    """

    def __init__(self, sys_folder: Path = _SYS) -> None:
        self._sys = sys_folder
        self._read_s = float("-inf")
        self._last: Machine | None = None

    def read(self) -> Machine:
        now_s = time.monotonic()
        if self._last is None or now_s - self._read_s > _KEPT_S:
            self._last, self._read_s = self._read_now(), now_s
        return self._last

    def _read_now(self) -> Machine:
        return Machine(
            temperatures(self._sys),
            clocks(self._sys),
            resident_bytes() or 0,
            os.getloadavg()[0],
            len(os.sched_getaffinity(0)),
        )


def temperatures(sys_folder: Path = _SYS) -> dict[str, float]:
    """Degrees Celsius per thermal zone, named by its type; zones of one type are numbered."""
    found: dict[str, float] = {}
    for zone in sorted((sys_folder / "class/thermal").glob("thermal_zone*")):
        with suppress(OSError, ValueError):  # zones that are switched off refuse to be read
            name = (zone / "type").read_text().strip()
            value = int((zone / "temp").read_text()) / 1000
            found[f"{name} {zone.name[12:]}" if name in found else name] = value
    return found


def clocks(sys_folder: Path = _SYS) -> dict[str, tuple[float, float]]:
    """(current, highest) hertz per CPU, as its frequency driver reports."""
    found = {}
    for folder in sorted((sys_folder / "devices/system/cpu").glob("cpu[0-9]*/cpufreq")):
        with suppress(OSError, ValueError):
            now_khz = int((folder / "scaling_cur_freq").read_text())
            found[folder.parent.name] = (now_khz * 1e3, int((folder / "cpuinfo_max_freq").read_text()) * 1e3)
    return found


class BudgetJson(TypedDict, total=False):
    """Deadline and tolerated misses; empty until the run has opened."""

    deadline_ms: float
    window_frames: int
    max_miss_ratio: float


class FramesJson(TypedDict):
    """Frame counts over all cameras; ``dropped`` by cause."""

    captured: int
    published: int
    dropped: dict[str, int]
    in_flight: int
    misses: int


class _Camera(TypedDict):
    id: str
    source: str
    running: bool
    state: str
    fps: float


class CameraJson(_Camera, total=False):
    """One camera and its state at this moment.

    Counts are there once it was opened, the keys from ``misses`` on once a frame was published.
    """

    captured: int
    published: int
    dropped: dict[str, int]
    in_flight: int
    misses: int
    seq: int
    age_ms: float
    silent_s: float


class MachineJson(TypedDict):
    """Readings of the machine; ``clocks_mhz`` is [current, highest] per CPU."""

    temperatures_c: dict[str, float]
    clocks_mhz: dict[str, list[int]]
    memory_mb: float
    load: float
    cpus: int


class StatusJson(TypedDict):
    """State of a run; /status merges it with ``RunInfo``, ``frames``, percentiles of ``age`` and the last events."""

    boot: str
    uptime_s: float
    alive: bool
    ready: bool
    reason: str
    budget: BudgetJson
    mode: str
    mode_frames: dict[str, int]
    alert: bool
    changes: list[ChangeRow]
    frames: FramesJson
    cameras: list[CameraJson]
    age: dict[str, float]
    stages: dict[str, dict[str, float]]
    sinks: list[SinkRow]
    drift: Mapping[str, Any] | None
    shadow: Mapping[str, Any] | None
    machine: MachineJson
    viewers: dict[str, int]


class StripRow(TypedDict):
    """One frame of the latency strip; ``i`` counts published frames from 1, times in microseconds."""

    i: int
    camera: str
    seq: int
    age: int
    stages: dict[str, int]
    late: bool
    mode: str


_RATE_OVER_S = 3.0
_EVENTS_SHOWN = 60
_CHANGES_SHOWN = 40


class StatusReader:
    """Builds the status of a run; keeps what rates are computed from.

    Args:
        live_state: written by the loop.
        machine: read at most every two seconds.
        viewers: of the event stream.
    """

    def __init__(self, live_state: LiveState, machine: MachineReader, viewers: ViewerCounts) -> None:
        self._live_state = live_state
        self._machine = machine
        self._counts = viewers
        self._history: list[tuple[float, dict[str, int]]] = []

    def read(self) -> StatusJson:
        """JSON values only; times in milliseconds, ages since now in seconds."""
        live_state = self._live_state
        run = live_state.run
        counts_by_camera = run.counts_by_camera() if run else {}
        cameras = dict(live_state.cameras)
        rates = self._rates(counts_by_camera)
        now_ns = time.monotonic_ns()
        return {
            "boot": live_state.boot,
            "uptime_s": round((time.monotonic_ns() - live_state.started_ns) / 1e9, 1),
            "alive": not not_alive(live_state, now_ns),
            "ready": not (waits := not_ready(live_state, now_ns)),
            "reason": waits,
            "budget": _budget(live_state),
            "mode": live_state.mode,
            "mode_frames": dict(live_state.modes),
            "alert": live_state.alert,
            "changes": list(live_state.changes)[-_CHANGES_SHOWN:],
            "frames": _frame_counts(counts_by_camera, cameras),
            "cameras": [
                self._camera(name, counts_by_camera.get(name), cameras.get(name), rates.get(name, 0.0))
                for name in self._names(counts_by_camera)
            ],
            "age": _merged([camera.age for camera in cameras.values()]).summary_ms(),
            "stages": _stages(cameras),
            "sinks": [sink.as_json() for sink in (run.sinks() if run else ())],
            "drift": run.drift() if run else None,
            "shadow": run.shadow() if run else None,
            "machine": self._readings(),
            "viewers": self._viewers(),
        }

    def events(self) -> list[dict[str, Any]]:
        """The last events, oldest first."""
        return [event for _, event in list(self._live_state.events)[-_EVENTS_SHOWN:]]

    def _names(self, counts_by_camera: Mapping[str, FrameCounts]) -> list[str]:
        return list(dict.fromkeys([*self._live_state.run_info.get("cameras", {}), *counts_by_camera]))

    def _rates(self, counts_by_camera: Mapping[str, FrameCounts]) -> dict[str, float]:
        """Published frames per second over the last seconds, per camera."""
        now_s = time.monotonic()
        counts = {camera: counts.published for camera, counts in counts_by_camera.items()}
        self._history = [(t, c) for t, c in self._history if now_s - t <= _RATE_OVER_S]
        self._history.append((now_s, counts))
        then_s, before = self._history[0]
        span_s = now_s - then_s
        return {
            c: round((n - before.get(c, n)) / span_s, 2) if span_s > 0 else 0.0 for c, n in counts.items()
        }

    def _camera(
        self, name: str, counts: FrameCounts | None, seen: CameraState | None, rate: float
    ) -> CameraJson:
        run = self._live_state.run
        row: CameraJson = {
            "id": name,
            "source": self._live_state.run_info.get("cameras", {}).get(name, ""),
            "running": bool(run and name in run.pids()),
            "state": run.conditions().get(name, "ended") if run else "opening",
            "fps": rate,
        }
        if counts is not None:
            row |= {
                "captured": counts.captured,
                "published": counts.published,
                "dropped": counts.dropped,
                "in_flight": counts.in_flight,
            }
        if seen is not None and seen.last is not None:
            row |= {
                "misses": sum(seen.late.values()),
                "seq": seen.last.published.detections.seq,
                "age_ms": round(seen.last.published.age_ns / 1e6, 2),
                "silent_s": round((time.monotonic_ns() - seen.seen_ns) / 1e9, 2),
            }
        return row

    def _viewers(self) -> dict[str, int]:
        counts = self._counts
        return {"now": counts.now, "dropped": counts.dropped, "told": counts.sent, "missed": counts.missed}

    def _readings(self) -> MachineJson:
        now = self._machine.read()
        return {
            "temperatures_c": {zone: round(value, 1) for zone, value in now.temperatures_c.items()},
            "clocks_mhz": {
                cpu: [round(clock / 1e6), round(highest / 1e6)]
                for cpu, (clock, highest) in now.clocks_hz.items()
            },
            "memory_mb": round(now.memory_bytes / 1e6, 1),
            "load": round(now.load, 2),
            "cpus": now.cpus,
        }


def _budget(live_state: LiveState) -> BudgetJson:
    if live_state.run is None:
        return {}
    budget = live_state.run.budget
    return {
        "deadline_ms": budget.deadline_ns / 1e6,
        "window_frames": budget.window_frames,
        "max_miss_ratio": budget.max_miss_ratio,
    }


def _frame_counts(
    counts_by_camera: Mapping[str, FrameCounts], cameras: Mapping[str, CameraState]
) -> FramesJson:
    dropped = sum((Counter(counts.dropped) for counts in counts_by_camera.values()), Counter[str]())
    return {
        "captured": sum(counts.captured for counts in counts_by_camera.values()),
        "published": sum(counts.published for counts in counts_by_camera.values()),
        "dropped": dict(sorted(dropped.items())),
        "in_flight": sum(counts.in_flight for counts in counts_by_camera.values()),
        "misses": sum(sum(camera.late.values()) for camera in cameras.values()),
    }


def _merged(histograms: list[Histogram]) -> Histogram:
    total = Histogram()
    for one in histograms:
        counts = dict(one.counts)
        total.merge(Histogram(counts, sum(counts.values()), one.max_ns, one.sum_ns))
    return total


def _stages(cameras: Mapping[str, CameraState]) -> dict[str, dict[str, float]]:
    names = dict.fromkeys(stage for camera in cameras.values() for stage in list(camera.stages))
    return {
        name: _merged([c.stages[name] for c in cameras.values() if name in c.stages]).summary_ms()
        for name in names
    }


def strip(rows: list[FrameRow]) -> list[StripRow]:
    """Frames for the latency strip, microseconds."""
    return [
        {
            "i": row.index,
            "camera": row.published.detections.camera,
            "seq": row.published.detections.seq,
            "age": row.published.age_ns // 1000,
            "stages": {stage: max(0, spent_ns) // 1000 for stage, spent_ns in row.stages},
            "late": row.published.late,
            "mode": row.published.mode,
        }
        for row in rows
    ]
