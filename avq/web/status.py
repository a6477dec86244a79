"""The run as one JSON object: what /status answers and the page shows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from avq.daemon.latency import Histogram
from avq.daemon.ledger import Account
from avq.web.board import Board, CameraBoard, FrameRow
from avq.web.health import not_alive, not_ready
from avq.web.machine import MachineReader
from avq.web.viewers import ViewerCounts

_RATE_OVER_S = 3.0
_EVENTS_SHOWN = 60
_CHANGES_SHOWN = 40


class StatusReader:
    """Builds the status of a run; keeps what rates are computed from.

    Args:
        board: written by the loop.
        machine: read at most every two seconds.
        viewers: of the event stream.
    """

    def __init__(self, board: Board, machine: MachineReader, viewers: ViewerCounts) -> None:
        self._board = board
        self._machine = machine
        self._counts = viewers
        self._history: list[tuple[float, dict[str, int]]] = []

    def read(self) -> dict[str, Any]:
        """JSON values only; times in milliseconds, ages since now in seconds."""
        board = self._board
        run = board.run
        accounts = run.accounts() if run else {}
        cameras = dict(board.cameras)
        rates = self._rates(accounts)
        now_ns = time.monotonic_ns()
        return {
            "boot": board.boot,
            "uptime_s": round(time.time() - board.started_s, 1),
            "alive": not not_alive(board, now_ns),
            "ready": not (waits := not_ready(board, now_ns)),
            "reason": waits,
            "budget": _budget(board),
            "mode": board.mode,
            "mode_frames": dict(board.modes),
            "alert": board.alert,
            "changes": list(board.changes)[-_CHANGES_SHOWN:],
            "frames": _books(accounts, cameras),
            "cameras": [
                self._camera(name, accounts.get(name), cameras.get(name), rates.get(name, 0.0))
                for name in self._names(accounts)
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
        return [event for _, event in list(self._board.events)[-_EVENTS_SHOWN:]]

    def _names(self, accounts: Mapping[str, Account]) -> list[str]:
        return list(dict.fromkeys([*self._board.facts.get("cameras", {}), *accounts]))

    def _rates(self, accounts: Mapping[str, Account]) -> dict[str, float]:
        """Published frames per second over the last seconds, per camera."""
        now_s = time.monotonic()
        counts = {camera: account.published for camera, account in accounts.items()}
        self._history = [(t, c) for t, c in self._history if now_s - t <= _RATE_OVER_S]
        self._history.append((now_s, counts))
        then_s, before = self._history[0]
        span_s = now_s - then_s
        return {
            c: round((n - before.get(c, n)) / span_s, 2) if span_s > 0 else 0.0 for c, n in counts.items()
        }

    def _camera(
        self, name: str, account: Account | None, seen: CameraBoard | None, rate: float
    ) -> dict[str, Any]:
        run = self._board.run
        row: dict[str, Any] = {
            "id": name,
            "source": self._board.facts.get("cameras", {}).get(name, ""),
            "running": bool(run and name in run.pids()),
            "fps": rate,
        }
        if account is not None:
            row |= {
                "captured": account.captured,
                "published": account.published,
                "dropped": account.dropped,
                "in_flight": account.in_flight,
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
        return {"now": counts.now, "dropped": counts.dropped, "told": counts.told, "missed": counts.missed}

    def _readings(self) -> dict[str, Any]:
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


def _budget(board: Board) -> dict[str, float]:
    if board.run is None:
        return {}
    budget = board.run.budget
    return {
        "deadline_ms": budget.deadline_ns / 1e6,
        "window_frames": budget.window_frames,
        "max_miss_ratio": budget.max_miss_ratio,
    }


def _books(accounts: Mapping[str, Account], cameras: Mapping[str, CameraBoard]) -> dict[str, Any]:
    dropped = sum((Counter(account.dropped) for account in accounts.values()), Counter[str]())
    return {
        "captured": sum(account.captured for account in accounts.values()),
        "published": sum(account.published for account in accounts.values()),
        "dropped": dict(sorted(dropped.items())),
        "in_flight": sum(account.in_flight for account in accounts.values()),
        "misses": sum(sum(camera.late.values()) for camera in cameras.values()),
    }


def _merged(histograms: list[Histogram]) -> Histogram:
    total = Histogram()
    for one in histograms:
        counts = dict(one.counts)
        total.merge(Histogram(counts, sum(counts.values()), one.max_ns, one.sum_ns))
    return total


def _stages(cameras: Mapping[str, CameraBoard]) -> dict[str, dict[str, float]]:
    names = dict.fromkeys(stage for camera in cameras.values() for stage in list(camera.stages))
    return {
        name: _merged([c.stages[name] for c in cameras.values() if name in c.stages]).summary_ms()
        for name in names
    }


def strip(rows: list[FrameRow]) -> list[dict[str, Any]]:
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
