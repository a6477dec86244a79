"""A service manager for tests: a real datagram socket that hears what a daemon says of itself."""

from __future__ import annotations

import socket
import time
from pathlib import Path


class Manager:
    """Listens like systemd.

    Args:
        path: of the socket; "@name" for an abstract one.
    """

    def __init__(self, path: Path | str) -> None:
        self.address = str(path)
        self.said: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{self.address[1:]}" if self.address.startswith("@") else self.address)

    def environment(self, watchdog_s: float = 0.0) -> dict[str, str]:
        watchdog = {"WATCHDOG_USEC": str(int(watchdog_s * 1e6))} if watchdog_s else {}
        return {"NOTIFY_SOCKET": self.address, **watchdog}

    def hear(self, for_s: float, *, until: str = "", times: int = 1) -> int:
        """Listen; ends early when a message with the key ``until`` came so often. Returns how often it came.

        What has come already is heard, however little time there is.
        """
        deadline_s, count = time.monotonic() + for_s, 0
        while not (until and count >= times):
            self._socket.settimeout(max(0.0, deadline_s - time.monotonic()))
            try:
                text = self._socket.recv(4096).decode()
            except (TimeoutError, BlockingIOError):
                break
            message = dict(line.split("=", 1) for line in text.splitlines())
            self.said.append(message)
            count += until in message
        return count

    def keys(self) -> list[str]:
        """Every key that was said, in order."""
        return [key for message in self.said for key in message]

    def close(self) -> None:
        self._socket.close()
