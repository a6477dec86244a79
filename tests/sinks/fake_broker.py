"""A broker of MQTT 5 that gives the answers a test wants: reason codes, broken connections, silence."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

CONNECT, PUBLISH, PINGREQ, DISCONNECT = 1, 3, 12, 14
#: What to do with a published alert: a reason code of PUBACK, ("disconnect", code), or ("close", 0).
Answer = int | tuple[str, int]


class FakeBroker:
    """Accepts one connection at a time on loopback.

    Args:
        answer: of the id of an alert and the count of its copies so far.
        connack: reason code of the answer to a connection; None for no answer and -1 for a closed connection.
    """

    def __init__(self, answer: Callable[[str, int], Answer], connack: int | None = 0) -> None:
        self.copies: list[str] = []  # ids in the order of arrival
        self.taken: list[str] = []
        self.connections = 0
        self.client_ids: list[str] = []
        self.answer = answer
        self._connack = connack
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                self.connections += 1
                with connection, suppress(OSError, EOFError):
                    self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        while True:
            kind, flags, body = _packet(connection)
            if kind == CONNECT:
                self.client_ids.append(_client_id(body))
                if self._connack is None:
                    continue
                if self._connack == -1:
                    return
                connection.sendall(bytes((0x20, 3, 0, self._connack, 0)))
                if self._connack:
                    return
            elif kind == PUBLISH and flags & 0x06:
                if not self._published(connection, body):
                    return
            elif kind == PINGREQ:
                connection.sendall(b"\xd0\x00")
            elif kind == DISCONNECT:
                return

    def _published(self, connection: socket.socket, body: bytes) -> bool:
        length = int.from_bytes(body[:2], "big")
        topic, mid = body[2 : 2 + length].decode(), body[2 + length : 4 + length]
        payload = json.loads(body[4 + length + 1 + body[4 + length] :])
        if topic.endswith("/status"):
            connection.sendall(b"\x40\x02" + mid)
            return True
        name = payload["id"]
        self.copies.append(name)
        answer = self.answer(name, self.copies.count(name))
        if isinstance(answer, tuple):
            if answer[0] == "disconnect":
                connection.sendall(bytes((0xE0, 2, answer[1], 0)))
            return False
        if answer < 0x80:
            self.taken.append(name)
        connection.sendall(b"\x40\x03" + mid + bytes((answer,)))
        return True


def _packet(connection: socket.socket) -> tuple[int, int, bytes]:
    first = _exactly(connection, 1)[0]
    length, shift = 0, 0
    while True:
        byte = _exactly(connection, 1)[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return first >> 4, first & 0x0F, _exactly(connection, length)


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def _client_id(body: bytes) -> str:
    """The first field of the payload, after name, version, flags, keep-alive and properties (below 128 bytes)."""
    at = 2 + 4 + 1 + 1 + 2
    at += 1 + body[at]
    length = int.from_bytes(body[at : at + 2], "big")
    return body[at + 2 : at + 2 + length].decode()
