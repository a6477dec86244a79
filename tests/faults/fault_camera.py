"""A network camera that misbehaves on purpose: MJPEG over HTTP on the loopback, one fault per connection.

Each connection takes the next entry of the script; the last entry repeats. Times are seconds.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np

from tests.ports import free_port

Fault = Literal[
    "none", "silent", "headers_only", "stall", "reset", "drip", "garbage", "raw_garbage", "jitter", "away"
]
_HEAD = b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n"


@dataclass(frozen=True)
class Connection:
    """What one connection gets.

    Attributes:
        fault: "away": ``after`` frames, a reset, and nobody listens for ``pause_s``.
        after: good frames before the fault.
        fps: of the good frames.
        jitter_s: the longest extra delay of one frame ("jitter").
        pause_s: how long "away" lasts.
    """

    fault: Fault = "none"
    after: int = 20
    fps: float = 30.0
    jitter_s: float = 0.0
    pause_s: float = 0.0


def part(number: int) -> bytes:
    """One multipart frame whose grey level is its number; noise keeps neighbours unequal."""
    noise = np.random.default_rng(number).integers(0, 30, (48, 64, 3), np.uint8)
    jpeg = cv2.imencode(".jpg", noise + np.uint8(number % 200))[1].tobytes()
    return b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg) + jpeg + b"\r\n"


@dataclass
class FaultCamera:
    """Serves until ``close()``. ``connections`` counts those it accepted."""

    script: list[Connection]
    seed: int = 0
    connections: int = 0
    _open: list[socket.socket] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ended = threading.Event()
        self.port = free_port()
        self._listener = self._listen(self.port)
        self._parts = [part(number) for number in range(64)]
        self._start(self._accept)

    @property
    def uri(self) -> str:
        raw = self.script[0].fault == "raw_garbage"
        return f"{'tcp' if raw else 'http'}://127.0.0.1:{self.port}" + ("" if raw else "/stream")

    def _listen(self, port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(8)
        listener.settimeout(0.05)
        return listener

    def _start(self, function: object, *arguments: object) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                peer, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:  # away
                self._ended.wait(0.02)
                continue
            entry = self.script[min(self.connections, len(self.script) - 1)]
            self.connections += 1
            self._open.append(peer)
            self._start(self._serve, peer, entry, random.Random(self.seed * 1000 + self.connections))

    def _serve(self, peer: socket.socket, entry: Connection, chance: random.Random) -> None:
        with suppress(OSError):
            self._talk(peer, entry, chance)

    def _talk(self, peer: socket.socket, entry: Connection, chance: random.Random) -> None:
        if entry.fault == "silent":
            return
        if entry.fault == "raw_garbage":
            self._babble(peer, chance)
            return
        peer.recv(4096)
        peer.sendall(_HEAD)
        if entry.fault == "headers_only":
            return
        endless = entry.fault in ("none", "jitter")
        self._frames(peer, entry, chance, None if endless else entry.after)
        if entry.fault == "drip":
            for byte in self._parts[0]:
                peer.sendall(bytes([byte]))
                self._ended.wait(1.0)
        elif entry.fault == "garbage":
            self._babble(peer, chance)
        elif entry.fault == "reset":
            self._reset(peer)
        elif entry.fault == "away":
            self._listener.close()
            self._reset(peer)
            self._ended.wait(entry.pause_s)
            if not self._ended.is_set():
                self._listener = self._listen(self.port)

    def _frames(
        self, peer: socket.socket, entry: Connection, chance: random.Random, count: int | None
    ) -> None:
        due_s, number = time.monotonic(), 0
        while number != count and not self._ended.is_set():
            due_s += 1 / entry.fps
            late_s = chance.random() ** 4 * entry.jitter_s
            self._ended.wait(max(0.0, due_s + late_s - time.monotonic()))
            peer.sendall(self._parts[number % len(self._parts)])
            number += 1

    def _babble(self, peer: socket.socket, chance: random.Random) -> None:
        while not self._ended.wait(0.02):
            peer.sendall(chance.randbytes(2000))

    @staticmethod
    def _reset(peer: socket.socket) -> None:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()

    def close(self) -> None:
        """End every connection and thread."""
        self._ended.set()
        for thread in list(self._threads):
            thread.join(5)
        for peer in (*self._open, self._listener):
            peer.close()
