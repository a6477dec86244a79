"""HTTP endpoints: page, pictures, health, metrics, status, events, and the swap of a bundle."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from avq.errors import AvqError
from avq.web.auth import Guard
from avq.web.camera_images import CameraSnapshots, boxes_of
from avq.web.connections import MOST_VIEWERS, RequestLimit
from avq.web.live_state import LiveState, ViewerCounts
from avq.web.metrics import exposition
from avq.web.status import MachineReader, StatusReader, not_alive, not_ready
from avq.web.stream import KINDS, EventStream, Feed

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BODY_BYTES = 4096
_BODY_WAIT_S = 3.0

#: No resources of other hosts, no inline scripts, no framing.
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": _POLICY,
}
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class Endpoints:
    """One method per path.

    Args:
        live_state: written by the loop.
        stopping: true when the server is to end.
    """

    def __init__(self, live_state: LiveState, stopping: Callable[[], bool]) -> None:
        self._live_state = live_state
        self._stopping = stopping
        self._machine = MachineReader()
        self._counts = ViewerCounts()
        self._status = StatusReader(live_state, self._machine, self._counts)
        self._feed = Feed(live_state, self._status, self._counts)
        self._snapshots = CameraSnapshots(live_state)
        self._page = page_files()
        self._swapping = threading.Lock()

    async def page(self, request: Request) -> Response:
        """Return one file of the page, by name only."""
        name = request.path_params.get("name", "index.html")
        if (body := self._page.get(name)) is None:
            return PlainTextResponse(f"there is no {name!r} here\n", 404)
        kind = f"{_TYPES[Path(name).suffix]}; charset=utf-8"
        return Response(body, headers={"content-type": kind, **_HEADERS})

    async def livez(self, request: Request) -> Response:
        return _health(not_alive(self._live_state, time.monotonic_ns()))

    async def readyz(self, request: Request) -> Response:
        return _health(not_ready(self._live_state, time.monotonic_ns()))

    async def metrics(self, request: Request) -> Response:
        text = exposition(self._live_state, self._machine, self._counts)
        return Response(text, headers={"content-type": METRICS_TYPE, **_HEADERS})

    async def status(self, request: Request) -> Response:
        """Return the state of the run; the keys of the summary of ``avq run --json`` are at the top level too."""
        now = self._status.read()
        age = {key: now["age"][key] for key in ("p50_ms", "p99_ms", "max_ms")}
        answer = {**self._live_state.run_info, **now, **now["frames"], **age, "events": self._status.events()}
        return JSONResponse(answer, headers=_HEADERS)

    async def events(self, request: Request) -> Response | EventStream:
        """Stream server-sent events; ``?only=status,frames`` selects kinds."""
        wanted = request.query_params.get("only")
        kinds = wanted.split(",") if wanted else KINDS
        if unknown := set(kinds) - set(KINDS):
            return _refused(
                400, f"there are no {', '.join(sorted(unknown))}", f"choose from {', '.join(KINDS)}"
            )
        if self._counts.now >= MOST_VIEWERS:
            return _refused(503, "too many viewers", f"{MOST_VIEWERS} viewers")
        return EventStream(self._feed, kinds, request.headers.get("last-event-id", ""), self._stopping)

    async def camera(self, request: Request) -> Response:
        """Return the newest picture, with its boxes in the header ``Avq-Frame``; 204 when there is none."""
        camera = request.path_params["camera"]
        after = request.query_params.get("after", "")
        if camera not in self._live_state.cameras:
            if camera in self._live_state.run_info.get("cameras", ()):
                return Response(status_code=204, headers=_HEADERS)
            return PlainTextResponse(f"there is no camera {camera!r} here\n", 404)
        got = await self._snapshots.next(
            camera, int(after[:9]) if after.isascii() and after.isdecimal() else 0
        )
        if got is None:
            return Response(status_code=204, headers=_HEADERS)
        headers = {"avq-frame": boxes_of(got[0], self._live_state.labels), **_HEADERS}
        return Response(got[1], media_type="image/jpeg", headers=headers)

    async def swap(self, request: Request) -> Response:
        """Serve another bundle: ``{"bundle": "/path/to/folder"}``."""
        try:
            body = await asyncio.wait_for(_body(request), _BODY_WAIT_S)
            folder = Path(json.loads(body)["bundle"])
            str(folder).encode()  # JSON escapes can spell what no UTF-8 holds
        except (ValueError, TypeError, KeyError, RecursionError, asyncio.TimeoutError, ClientDisconnect):
            return _refused(
                400,
                "the request names no bundle",
                "body of the request",
                'send {"bundle": "/path/to/folder"}',
            )
        run = self._live_state.run
        if run is None or run.swap is None:
            return _refused(
                501,
                "the bundle was not swapped",
                "the run is starting" if run is None else "the run cannot swap",
            )
        if not self._swapping.acquire(blocking=False):
            return _refused(
                409,
                "another swap is in progress",
                "one at a time",
                "send the request again when it has ended",
            )
        try:
            return JSONResponse(dict(await _on_thread(run.swap, folder)), headers=_HEADERS)
        except AvqError as error:
            return _refused(409, error.what, error.seen, error.fix)
        finally:
            self._swapping.release()

    def close(self) -> None:
        self._snapshots.close()


async def _body(request: Request) -> bytes:
    """Raises ValueError when it is longer than any path."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _BODY_BYTES:
            raise ValueError("too long")
    return body


async def _on_thread(function: Callable[[Path], Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
    """Await a function on a daemon thread."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Mapping[str, Any]] = loop.create_future()

    def settle(value: Mapping[str, Any] | None, error: BaseException | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(value or {})

    def work() -> None:
        try:
            value = function(folder)
        except Exception as error:
            loop.call_soon_threadsafe(settle, None, error)
        else:
            loop.call_soon_threadsafe(settle, value, None)

    threading.Thread(target=work, name="swap", daemon=True).start()
    return await answer


def _health(reason: str) -> Response:
    return JSONResponse({"ok": not reason, "reason": reason}, 503 if reason else 200, headers=_HEADERS)


def _refused(code: int, what: str, seen: str, fix: str = "") -> Response:
    return JSONResponse({"what": what, "seen": seen, "fix": fix}, code, headers=_HEADERS)


def page_files() -> dict[str, bytes]:
    """Read the files of the page: name -> content."""
    folder = files("avq.web") / "page"
    return {file.name: file.read_bytes() for file in folder.iterdir() if Path(file.name).suffix in _TYPES}


def application(endpoints: Endpoints, token: str | None) -> Starlette:
    """The ASGI application."""
    routes = [
        Route("/", endpoints.page),
        Route("/livez", endpoints.livez),
        Route("/readyz", endpoints.readyz),
        Route("/metrics", endpoints.metrics),
        Route("/status", endpoints.status),
        Route("/events", endpoints.events),
        Route("/camera/{camera}.jpg", endpoints.camera),
        Route("/page/{name}", endpoints.page),
        Route("/bundle", endpoints.swap, methods=["POST"]),
    ]
    return Starlette(routes=routes, middleware=[Middleware(RequestLimit), Middleware(Guard, token=token)])
