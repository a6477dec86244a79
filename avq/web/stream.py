"""Server-sent events for viewers: published frames, events and the status.

Updates are encoded once, in numbered chunks; each viewer takes the chunks at its own time, so
that many viewers never make one long burst of work. Viewers that do not keep up are dropped.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from avq.web.live_state import FrameRow, LiveState, ViewerCounts
from avq.web.status import StatusReader, strip

KINDS = ("status", "frames", "events", "detections")
TICK_S = 0.1
STATUS_EVERY_S = 0.6
#: A viewer whose connection takes nothing for so long is dropped.
PATIENCE_S = 2.0
FRAMES_AT_FIRST = 240
EVENTS_AT_FIRST = 60
_CHUNKS_KEPT = 64
_RECONNECT_MS = 1000
_ENCODER = msgspec.json.Encoder()


@dataclass
class Chunk:
    """Updates since the chunk before; text is encoded only for requested kinds."""

    boot: str
    rows: list[FrameRow]
    happened: list[dict[str, Any]]
    status_text: str
    labels: tuple[str, ...]
    missed: int = 0
    hello: str = ""

    @cached_property
    def status(self) -> str:
        return _event("status", self.status_text) if self.status_text else ""

    @cached_property
    def frames(self) -> str:
        return _event("frames", json.dumps(strip(self.rows))) if self.rows else ""

    @cached_property
    def events(self) -> str:
        return _event("events", json.dumps(self.happened)) if self.happened else ""

    @cached_property
    def detections(self) -> str:
        """One event per published frame: the line of the JSON-lines sink, with an id to resume from."""
        missed = _event("missed", json.dumps({"frames": self.missed})) if self.missed else ""
        return missed + "".join(
            _event("detections", _ENCODER.encode(row.published.as_message(self.labels)).decode(),
                   f"{self.boot}:{row.index}")
            for row in self.rows
        )  # fmt: skip

    def text(self, kinds: Iterable[str]) -> str:
        return self.hello + "".join(str(getattr(self, kind)) for kind in kinds)


class Feed:
    """Creates chunks when a viewer takes them and the last one is old enough.

    Args:
        live_state, reader: sources of the updates.
        counts: of viewers and missed frames.
    """

    def __init__(self, live_state: LiveState, reader: StatusReader, counts: ViewerCounts) -> None:
        self.live_state = live_state
        self.counts = counts
        self._reader = reader
        self._chunks: deque[tuple[int, Chunk]] = deque(maxlen=_CHUNKS_KEPT)
        self._number = 0
        self._first: tuple[int, Chunk] | None = None  # of a new viewer, until the next tick
        self._frames_sent = 0
        self._events_sent = 0
        self._made_s = float("-inf")
        self._status_s = float("-inf")
        self._facts = live_state.run_info

    def first(self, resume: int | None) -> tuple[int, Chunk]:
        """For a new viewer: the status, the last frames and events; or all that is there since ``resume``."""
        self._make_due()
        if resume is None and self._first is not None and self._first[0] == self._number:
            return self._first  # many viewers at once cost one
        rows = [row for row in list(self.live_state.frames) if row.index <= self._frames_sent]
        if resume is None:
            rows, missed = rows[-FRAMES_AT_FIRST:], 0
        else:
            rows = [row for row in rows if row.index > resume]
            missed = (rows[0].index if rows else self._frames_sent + 1) - resume - 1
        happened = [event for number, event in list(self.live_state.events) if number <= self._events_sent]
        status = json.dumps(self._reader.read())
        chunk = self._chunk(rows, happened[-EVENTS_AT_FIRST:], status, max(0, missed))
        chunk.hello = f"retry: {_RECONNECT_MS}\n" + self._hello()
        if resume is None:
            self._first = self._number, chunk
        return self._number, chunk

    def since(self, number: int) -> tuple[int, list[Chunk]]:
        """The number of the newest chunk, and all after ``number``."""
        self._make_due()
        return self._number, [chunk for n, chunk in self._chunks if n > number]

    def _make_due(self) -> None:
        now_s = time.monotonic()
        if now_s - self._made_s < TICK_S:
            return
        if now_s - self._made_s > _CHUNKS_KEPT * TICK_S:  # no viewer for a while: skip older updates
            self._skip()
        self._made_s = now_s
        self._number += 1
        self._chunks.append((self._number, self._update(now_s)))

    def _skip(self) -> None:
        frames, events = list(self.live_state.frames), list(self.live_state.events)
        self._frames_sent = frames[-1].index if frames else 0
        self._events_sent = events[-1][0] if events else 0

    def _update(self, now_s: float) -> Chunk:
        rows = [row for row in list(self.live_state.frames) if row.index > self._frames_sent]
        missed = rows[0].index - self._frames_sent - 1 if rows else 0
        self._frames_sent = rows[-1].index if rows else self._frames_sent
        happened = [
            (number, event) for number, event in list(self.live_state.events) if number > self._events_sent
        ]
        self._events_sent = happened[-1][0] if happened else self._events_sent
        status = ""
        if now_s - self._status_s >= STATUS_EVERY_S or happened:
            self._status_s, status = now_s, json.dumps(self._reader.read())
        self.counts.missed += missed
        chunk = self._chunk(rows, [event for _, event in happened], status, missed)
        if (
            self._facts is not self.live_state.run_info
        ):  # the run has opened its bundle, or another one serves
            self._facts, chunk.hello = self.live_state.run_info, self._hello()
        return chunk

    def _chunk(self, rows: list[FrameRow], happened: list[dict[str, Any]], status: str, missed: int) -> Chunk:
        return Chunk(self.live_state.boot, rows, happened, status, self.live_state.labels, missed)

    def _hello(self) -> str:
        live_state = self.live_state
        return _event(
            "hello",
            json.dumps({"boot": live_state.boot, "started": live_state.started_s, **live_state.run_info}),
        )


class EventStream:
    """The response to one viewer; an ASGI application.

    Args:
        feed: of chunks.
        kinds: to send.
        last_id: the id of the last event this viewer got before its connection broke, or "".
        stopping: true when the server is to end.
    """

    def __init__(
        self, feed: Feed, kinds: Collection[str], last_id: str, stopping: Callable[[], bool]
    ) -> None:
        self._feed = feed
        self._kinds = [kind for kind in KINDS if kind in kinds]
        self._resume = resumed(last_id, feed.live_state.boot)
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        gone = asyncio.ensure_future(_disconnected(receive))
        counts = self._feed.counts
        counts.now += 1
        try:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            number, first = self._feed.first(self._resume)
            await self._send(send, first.text(self._kinds), len(first.rows))
            while not gone.done() and not self._stopping():
                number, chunks = self._feed.since(number)
                text = "".join(chunk.text(self._kinds) for chunk in chunks)
                await self._send(send, text, sum(len(chunk.rows) for chunk in chunks))
                await asyncio.wait([gone], timeout=TICK_S)
            await self._send(send, _event("bye", "{}"), 0, last=True)
        except asyncio.TimeoutError:
            counts.dropped += 1
        finally:
            counts.now -= 1
            gone.cancel()

    async def _send(self, send: Send, text: str, frames: int, *, last: bool = False) -> None:
        if text or last:
            message = {"type": "http.response.body", "body": text.encode(), "more_body": not last}
            await asyncio.wait_for(send(message), PATIENCE_S)
            self._feed.counts.sent += frames


_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
]


def resumed(last_id: str, boot: str) -> int | None:
    """The frame a viewer of this run has seen last; None for a new viewer and one of another run."""
    run, _, index = last_id.partition(":")
    return int(index) if run == boot and index.isascii() and index.isdecimal() and len(index) < 16 else None


def _event(name: str, data: str, number: str = "") -> str:
    return f"event: {name}\n" + (f"id: {number}\n" if number else "") + f"data: {data}\n\n"


async def _disconnected(receive: Receive) -> Any:
    while (message := await receive())["type"] != "http.disconnect":
        pass
    return message
