"""systemd: state notifications, and a watchdog heartbeat that stops when publication stops."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from avq.daemon.pipeline import Pipeline

#: One engine may take this long to open and warm up before the service manager ends the start.
LOADING_S = 180.0
_SEND_TIMEOUT = struct.pack("ll", 1, 0)  # a timeval
ENVIRONMENT_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class SystemdNotifier:
    """Notifies systemd of the state of the service; a full or missing socket raises nothing.

    Messages that are sent once (ready, reloading, stopping) wait for room, a second at most.

    Args:
        address: of the manager's datagram socket, "@" for an abstract one; "" sends nothing.
        watchdog_s: longest time between two pings; 0 for no watchdog.
    """

    def __init__(self, address: str = "", watchdog_s: float = 0.0) -> None:
        self.watchdog_s = watchdog_s if address else 0.0
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> SystemdNotifier:
        """Read the variables that systemd sets; a watchdog of another process (WATCHDOG_PID) is ignored."""
        variables = os.environ if environment is None else environment
        address = variables.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return cls()
        own = variables.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        interval = variables.get("WATCHDOG_USEC", "")
        return cls(address, int(interval) / 1e6 if own and interval.isdecimal() else 0.0)

    @property
    def enabled(self) -> bool:
        """Whether there is a service manager."""
        return self._socket is not None

    def extend_timeout(self, status: str) -> None:
        """Allow LOADING_S from now on for a slow step; a hang is noticed after that."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(LOADING_S * 1e6)}", f"STATUS={status}")

    def ready(self, status: str) -> None:
        """The service is warm and serves; also ends a reload."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=reloading")

    def ping(self) -> None:
        """Reset the watchdog; never waits."""
        self._send("WATCHDOG=1", flags=socket.MSG_DONTWAIT)

    def status(self, status: str) -> None:
        """Set the status line; never waits."""
        self._send(f"STATUS={status}", flags=socket.MSG_DONTWAIT)

    def stopping(self) -> None:
        self._send("STOPPING=1", "STATUS=draining")

    def _send(self, *lines: str, flags: int = 0) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.sendto("\n".join(lines).encode(), flags, self._address)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


#: Pings per watchdog interval: systemd recommends two, and some may be lost.
_PER_INTERVAL = 4.0
_STATUS_S = 2.0


class WatchdogHeartbeat:
    """Pings the watchdog after a published frame, and while the absence of frames is explained.

    Args:
        notifier: of the service manager.
        now_s: monotonic seconds.
    """

    def __init__(self, notifier: SystemdNotifier, now_s: Callable[[], float] = time.monotonic) -> None:
        self._notifier = notifier
        self._now_s = now_s
        self._ping_every_s = notifier.watchdog_s / _PER_INTERVAL if notifier.watchdog_s else float("inf")
        self._status_s = now_s()
        self._ping_due_s = self._status_s if notifier.watchdog_s else float("inf")
        self._frames = 0

    def on_frame(self, pipeline: Pipeline) -> None:
        """Count one published frame; ping and update the status when due."""
        self._frames += 1
        now_s = self._now_s()
        if now_s >= self._ping_due_s:
            self._ping(now_s)
        if now_s - self._status_s >= _STATUS_S:
            self._send_status(pipeline, now_s)

    def on_idle(self, explained: Callable[[], bool]) -> None:
        """Ping when due, although no frame came.

        Args:
            explained: whether no frame is queued and every camera has a reason to deliver none, or is not due yet.
        """
        now_s = self._now_s()
        if now_s >= self._ping_due_s and explained():
            self._ping(now_s)

    def _ping(self, now_s: float) -> None:
        self._ping_due_s = now_s + self._ping_every_s
        self._notifier.ping()

    def _send_status(self, pipeline: Pipeline, now_s: float) -> None:
        if self._notifier.enabled:
            rate = self._frames / (now_s - self._status_s)
            p99_ms = pipeline.metrics.age.percentile_ns(99) / 1e6
            alert = ", budget missed" if pipeline.state.alert else ""
            self._notifier.status(
                f"mode {pipeline.state.mode}{alert}: {rate:.1f} frames/s, age p99 {p99_ms:.1f} ms"
            )
        self._status_s, self._frames = now_s, 0
