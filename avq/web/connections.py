"""Bounds on connections: silent ones are closed, accepted ones are limited, and health checks are never refused.

A limit on requests alone lets connections that never send one use up the descriptors of the process.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from collections.abc import Mapping
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

#: Seconds until a connection must have sent a whole request, and until its response must have been taken.
REQUEST_S = 5.0
RESPONSE_S = 30.0
#: Sockets accepted at once; fewer where the process may open few files.
MOST_SOCKETS = 384
_LEAST_SOCKETS = 16
#: Descriptors that are kept for captures, sinks, recorder and engine.
_RESERVED = 256
#: Requests in progress, health checks aside.
MOST_REQUESTS = 256
HEALTH_PATHS = ("/livez", "/readyz", "/metrics")
#: Event streams.
MOST_VIEWERS = 128
#: Requests that are worked on at once: a health check waits for no more than these.
AT_ONCE = 4
#: Responses that take their time: the stream has a patience of its own, a swap opens a bundle.
_LONG_PATHS = ("/events", "/bundle")
#: Connections that asyncio accepts in a row, before it serves any of them.
ACCEPTED_AT_ONCE = 64
_log = logging.getLogger(__name__)


def socket_limit(descriptors: int | None = None) -> int:
    """Return how many sockets may be accepted at once.

    Args:
        descriptors: that the process may open; None reads its limit.
    """
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if descriptors is None else descriptors
    return max(_LEAST_SOCKETS, min(MOST_SOCKETS, (soft - _RESERVED) // 2))


class Connections:
    """The open connections of one server; used on its event loop only.

    Args:
        most: accepted at once. A further one takes the place of the one that has waited longest without a request.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._waiting: dict[BoundedProtocol, None] = {}  # without a request, oldest first
        self._open: set[BoundedProtocol] = set()
        self._paths: dict[BoundedProtocol, str] = {}  # of requests in progress

    def opened(self, connection: BoundedProtocol) -> None:
        """Add a connection; close another one, or this one when all others are busy."""
        if len(self._open) >= self.most:
            oldest = next(iter(self._waiting), connection)
            self.closed(oldest)
            oldest.transport.abort()
            if oldest is connection:
                return
        self._open.add(connection)
        self._waiting[connection] = None

    def busy(self, connection: BoundedProtocol, path: str) -> None:
        self._waiting.pop(connection, None)
        if path not in HEALTH_PATHS:
            self._paths[connection] = path

    def waits(self, connection: BoundedProtocol) -> None:
        self._paths.pop(connection, None)
        if connection in self._open:
            self._waiting[connection] = None

    def closed(self, connection: BoundedProtocol) -> None:
        self._open.discard(connection)
        self._waiting.pop(connection, None)
        self._paths.pop(connection, None)

    def has_room(self, path: str) -> bool:
        """Whether another request may be worked on; health checks always may."""
        if path in HEALTH_PATHS:
            return True
        if path == "/events" and sum(one == path for one in self._paths.values()) >= MOST_VIEWERS:
            return False
        return len(self._paths) < MOST_REQUESTS


class BoundedProtocol(H11Protocol):
    """One connection: closed when its request does not arrive, or its response is not taken, in time."""

    bounds: Connections

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._close_after(REQUEST_S)
        self.bounds.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        self.bounds.closed(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Refuse a request for which there is no room, before anything is spent on it."""
        first = self.cycle is None
        path = _path_of(data) if first else ""
        if path and not self.bounds.has_room(path):
            self.transport.write(_NO_ROOM)
            self.transport.close()
            return
        super().data_received(data)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before and not self.cycle.response_complete:
            self.bounds.busy(self, self.scope["path"])
            self._cancel()
            if self.scope["path"] not in _LONG_PATHS:
                self._close_after(RESPONSE_S)

    def on_response_complete(self) -> None:
        self.bounds.waits(self)
        self._close_after(REQUEST_S)
        super().on_response_complete()

    def _close_after(self, seconds: float) -> None:
        self._cancel()
        self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


_NO_ROOM = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\ncontent-length: 27\r\n"
    b"cache-control: no-store\r\nretry-after: 5\r\nconnection: close\r\n\r\ntoo many requests at once\r\n"
)


def _path_of(data: bytes) -> str:
    """The path of a request line; "" where the first bytes do not hold it whole."""
    line = data[:256].split(b" ", 2)
    return line[1].partition(b"?")[0].decode("latin-1") if len(line) == 3 else ""


def bounded(bounds: Connections) -> type[H11Protocol]:
    """Return the protocol class of one server."""
    return type("BoundedProtocol", (BoundedProtocol,), {"bounds": bounds})


class RequestLimit:
    """Middleware: few requests are worked on at once, so that a health check never waits for many."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._few = asyncio.Semaphore(AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in (*HEALTH_PATHS, *_LONG_PATHS):
            await self._app(scope, receive, send)
            return
        if scope["path"].startswith("/camera/"):  # waits for a picture
            await self._app(scope, receive, send)
            return
        async with self._few:
            await self._app(scope, receive, send)
            await asyncio.sleep(0)


class OncePerMinute(logging.Filter):
    """Passes each message once a minute: strangers decide how often it is logged."""

    def __init__(self) -> None:
        super().__init__()
        self._passed_s: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        key, now_s = str(record.msg)[:80], time.monotonic()
        if now_s - self._passed_s.get(key, float("-inf")) < 60:
            return False
        if len(self._passed_s) > 100:
            self._passed_s.clear()
        self._passed_s[key] = now_s
        return True


class BoundedServer(uvicorn.Server):
    """uvicorn whose event loop reports its errors in one line."""

    async def startup(self, sockets: Any = None) -> None:
        asyncio.get_running_loop().set_exception_handler(_log_in_one_line)
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(4096)  # a queue longer than what is accepted in a row


def _log_in_one_line(_: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    error = context.get("exception")
    _log.warning("%s%s", context.get("message", "error"), f": {error!r}" if error is not None else "")
