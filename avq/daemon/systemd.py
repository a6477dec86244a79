"""The sign of life, from the publish path only: it stops when publication stops, whatever else still runs."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from avq.daemon.pipeline import Pipeline

# systemd's notification protocol: one datagram per message, and silence where nobody listens.

#: One engine may take so long to open and warm before the service manager loses patience.
LOADING_S = 180.0
_PATIENCE = struct.pack("ll", 1, 0)  # a timeval
VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class SystemdNotifier:
    """Tells the service manager how we are. A full or vanished socket is no reason to fail, nor to hold up a frame.

    What is told once (ready, reloading, stopping) waits for room, a second at most.

    Args:
        address: of the manager's datagram socket, "@" for an abstract one; "" tells nobody.
        watchdog_s: it wants a sign of life at least so often; 0 for never.
    """

    def __init__(self, address: str = "", watchdog_s: float = 0.0) -> None:
        self.watchdog_s = watchdog_s if address else 0.0
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _PATIENCE)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> SystemdNotifier:
        """As the service manager asks for it; a watchdog that is meant for another process is not ours."""
        given = os.environ if environment is None else environment
        address = given.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return cls()
        ours = given.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        interval = given.get("WATCHDOG_USEC", "")
        return cls(address, int(interval) / 1e6 if ours and interval.isdecimal() else 0.0)

    @property
    def enabled(self) -> bool:
        return self._socket is not None

    def extend_timeout(self, what: str) -> None:
        """Something slow begins: it may take LOADING_S from now. A hang is noticed when that is over."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(LOADING_S * 1e6)}", f"STATUS={what}")

    def ready(self, what: str) -> None:
        """Warm and serving; also the end of a reload."""
        self._send("READY=1", f"STATUS={what}")

    def reloading(self) -> None:
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=reading again")

    def ping(self) -> None:
        """Frames go out, or it is accounted for that there are none. Never waits."""
        self._send("WATCHDOG=1", flags=socket.MSG_DONTWAIT)

    def status(self, what: str) -> None:
        """Never waits."""
        self._send(f"STATUS={what}", flags=socket.MSG_DONTWAIT)

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


#: Signs of life per interval of the watchdog: systemd asks for two, one more may be lost.
_PER_INTERVAL = 4.0
_STATUS_S = 2.0


class WatchdogHeartbeat:
    """Beats after a published frame, and where it is accounted for that none can be.

    Args:
        notifier: who is told.
        now_s: monotonic seconds.
    """

    def __init__(self, notifier: SystemdNotifier, now_s: Callable[[], float] = time.monotonic) -> None:
        self._notifier = notifier
        self._now_s = now_s
        self._beat_every_s = notifier.watchdog_s / _PER_INTERVAL if notifier.watchdog_s else float("inf")
        self._told_s = now_s()
        self._beat_s = self._told_s if notifier.watchdog_s else float("inf")  # when the next one is due
        self._frames = 0

    def on_frame(self, pipeline: Pipeline) -> None:
        """One frame went out."""
        self._frames += 1
        now_s = self._now_s()
        if now_s >= self._beat_s:
            self._beat(now_s)
        if now_s - self._told_s >= _STATUS_S:
            self._tell(pipeline, now_s)

    def on_idle(self, accounted: Callable[[], bool]) -> None:
        """No frame came. ``accounted``: nothing waits, and for every camera it is known why or not yet due."""
        now_s = self._now_s()
        if now_s >= self._beat_s and accounted():
            self._beat(now_s)

    def _beat(self, now_s: float) -> None:
        self._beat_s = now_s + self._beat_every_s
        self._notifier.ping()

    def _tell(self, pipeline: Pipeline, now_s: float) -> None:
        if self._notifier.enabled:
            rate = self._frames / (now_s - self._told_s)
            p99_ms = pipeline.metrics.age.percentile_ns(99) / 1e6
            alert = ", budget missed" if pipeline.state.alert else ""
            self._notifier.status(
                f"mode {pipeline.state.mode}{alert}: {rate:.1f} frames/s, age p99 {p99_ms:.1f} ms"
            )
        self._told_s, self._frames = now_s, 0
