"""Messages out: each sink on a thread of its own, behind a bounded queue, and what it missed is counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import Any

from avq.hookspecs import AlertSource, EventSink, ReportingSink, Sink, TimingSink
from avq.types import Frame, Published, StageTimes

MESSAGES_QUEUED = 256
PICTURES_QUEUED = 8
#: What sinks have, together, to write what waits when a run ends.
DRAIN_S = 10.0
_LOOK_AGAIN_S = 0.001


@dataclass(frozen=True, slots=True)
class SinkReport:
    """What became of one sink.

    Attributes:
        name: its type.
        written: messages, or events for a sink of events.
        missed: that found its queue full, or the sink broken.
        error: what ended it, or "".
        numbers: what it tells of itself.
        address: where it writes.
        queued: that wait for it.
        gauges: which of ``numbers`` may also fall.
    """

    name: str
    written: int
    missed: int
    error: str
    numbers: Mapping[str, int] = field(default_factory=dict)
    address: str = ""
    queued: int = 0
    gauges: frozenset[str] = frozenset()

    def as_json(self) -> dict[str, Any]:
        """One row, for the summary and the status; a number of the sink's called as one of ours is "own_NAME"."""
        row = {
            "name": self.name,
            "address": self.address,
            "written": self.written,
            "missed": self.missed,
            "queued": self.queued,
            "error": self.error,
        }
        own = {f"own_{name}" if name in row else name: value for name, value in self.numbers.items()}
        return {**row, **own}


@dataclass(frozen=True, slots=True)
class _Item:
    message: Published
    frame: Frame | None
    times: StageTimes


class SinkWorker:
    """One sink, its queue and its thread.

    Args:
        sink: written and closed on the worker's thread only.
        name: for reports.
        capacity: messages that may wait.
        address: where the sink writes, for reports.
    """

    def __init__(self, sink: Sink, name: str, capacity: int, address: str = "") -> None:
        self.error = ""
        self._address = address
        self._sink = sink
        self._name = name
        self._capacity = capacity
        self._queue: SimpleQueue[_Item | Mapping[str, Any] | None] = SimpleQueue()  # bounded by offer()
        self._written = 0
        self._unwritten = 0  # counted by the worker's thread
        self._refused = 0  # counted by the loop
        self._missed_events = 0  # events, from any thread
        self._lock = threading.Lock()  # of events: more than one thread tells them
        self._in_flight = False  # the sink has been given one and has not come back
        self._timing_sink = sink if isinstance(sink, TimingSink) else None
        self._event_sink = sink if isinstance(sink, EventSink) else None
        self._reporting_sink = sink if isinstance(sink, ReportingSink) else None
        self._events_only = self._event_sink is not None and self._event_sink.events_only
        self._patient = True
        self._thread = threading.Thread(target=self._run, name=f"sink {name}", daemon=True)
        self._thread.start()

    def offer(self, message: Published, frame: Frame, times: StageTimes, *, wait: bool) -> None:
        """Queue one message. A full queue is waited for (files) or the message is missed (live)."""
        if self._events_only:
            return
        if not self._has_room(wait):
            self._refused += 1
            return
        kept = replace(frame, pixels=frame.pixels.copy()) if self._sink.wants_pixels else None
        self._queue.put(_Item(message, kept, times))

    def event(self, event: Mapping[str, Any]) -> None:
        """Queue one event; missed when the queue is full."""
        if self._event_sink is None:
            return
        with self._lock:
            if self._has_room(wait=False):
                self._queue.put(event)
            else:
                self._missed_events += 1

    def _has_room(self, wait: bool) -> bool:
        while self._queue.qsize() >= self._capacity:
            if not (wait and self._patient):
                return False
            time.sleep(_LOOK_AGAIN_S)
        return True

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self.error:
                self._unwritten += 1
                continue
            self._in_flight = True
            try:
                self._write(item)
            except Exception as error:  # a sink's fault must not reach the frame path
                self.error = f"{type(error).__name__}: {error}"
                self._unwritten += 1
            self._in_flight = False
        self._close_sink()

    def _write(self, item: _Item | Mapping[str, Any]) -> None:
        if not isinstance(item, _Item):
            if self._event_sink is not None:
                self._event_sink.write_event(item)
                self._written += self._events_only
            return
        if self._timing_sink is not None:
            self._timing_sink.write_timing(item.message, item.times)
        self._sink.write(item.message, item.frame)
        self._written += 1

    def _close_sink(self) -> None:
        try:
            self._sink.close()
        except Exception as error:
            self.error = self.error or f"{type(error).__name__}: {error}"

    def stop_blocking(self) -> None:
        """Wait no longer for a sink that does not keep up."""
        self._patient = False

    def finish(self) -> None:
        """No more will be offered: write what waits, then close the sink."""
        self._queue.put(None)

    def finished(self, timeout_s: float) -> SinkReport:
        """After ``finish``: what became of it. A sink that does not finish within ``timeout_s`` is given up."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._refused += self._abandon()
            self.error = self.error or "did not finish in time"
        return self.report()

    def close(self, timeout_s: float) -> SinkReport:
        """Both of these."""
        self.finish()
        return self.finished(timeout_s)

    def report(self) -> SinkReport:
        """What became of it so far."""
        missed = self._refused + self._missed_events + self._unwritten
        queued = self._queue.qsize() if self._thread.is_alive() else 0
        gauges = frozenset() if self._reporting_sink is None else frozenset(self._reporting_sink.gauges)
        numbers = self._numbers()
        return SinkReport(
            self._name, self._written, missed, self.error, numbers, self._address, queued, gauges
        )

    def _numbers(self) -> Mapping[str, int]:
        """What the sink tells of itself; a sink that cannot is no reason to tell nothing of the run."""
        try:
            return {} if self._reporting_sink is None else dict(self._reporting_sink.report())
        except Exception:
            return {}

    def _abandon(self) -> int:
        """Messages and events the hung sink never got, the one in its hands included."""
        left = int(self._in_flight)
        while True:
            try:
                left += self._queue.get_nowait() is not None
            except Empty:
                return left


class Publisher:
    """All workers of a run.

    Args:
        sinks: closed by ``close()``.
        on_event: told every event on a thread of its own.
        addresses: where they write, for reports; "" or left out where nobody knows.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        on_event: Callable[[Mapping[str, Any]], None] | None = None,
        addresses: Sequence[str] = (),
    ) -> None:
        named = list(zip(sinks, [*addresses, *[""] * len(sinks)], strict=False))
        self._workers = [_worker_of(*one) for one in named if not isinstance(one[0], AlertSource)]
        self._alert_workers = [_worker_of(*one) for one in named if isinstance(one[0], AlertSource)]
        self._listener = SinkWorker(_Listener(on_event), "events", MESSAGES_QUEUED) if on_event else None
        for sink in sinks:
            if isinstance(sink, AlertSource):
                sink.connect(self.event)

    def publish(self, message: Published, frame: Frame, times: StageTimes, *, wait: bool) -> None:
        """Hand one message to every sink; pixels are copied for those that want them."""
        for worker in (*self._alert_workers, *self._workers):
            worker.offer(message, frame, times, wait=wait)

    def event(self, event: Mapping[str, Any]) -> None:
        """Hand one event to every sink that keeps events, and to the listener."""
        for worker in (*self._alert_workers, *self._workers, *([self._listener] if self._listener else [])):
            worker.event(event)

    @property
    def alive(self) -> bool:
        """False when there were sinks and every one of them has broken."""
        return not self._workers or any(not worker.error for worker in self._workers)

    def reports(self) -> list[SinkReport]:
        """What became of every sink so far; from any thread."""
        return [worker.report() for worker in (*self._alert_workers, *self._workers)]

    def stop_blocking(self) -> None:
        """The run is to stop: wait for no sink any more."""
        for worker in (*self._alert_workers, *self._workers):
            worker.stop_blocking()

    def close(self, timeout_s: float = DRAIN_S) -> list[SinkReport]:
        """Drain and close every sink: within ``timeout_s`` together, however many of them hang."""
        began_s = time.monotonic()
        found = _ended(
            self._alert_workers, began_s + timeout_s / 2
        )  # what they find still goes to the others
        listener = [self._listener] if self._listener is not None else []
        return [*found, *_ended([*self._workers, *listener], began_s + timeout_s)[: len(self._workers)]]


def _ended(workers: Sequence[SinkWorker], until_s: float) -> list[SinkReport]:
    for worker in workers:
        worker.finish()
    return [worker.finished(max(0.0, until_s - time.monotonic())) for worker in workers]


def _worker_of(sink: Sink, address: str) -> SinkWorker:
    capacity = PICTURES_QUEUED if sink.wants_pixels else MESSAGES_QUEUED
    return SinkWorker(sink, type(sink).__name__, capacity, address)


class _Listener:
    wants_pixels = False
    events_only = False

    def __init__(self, function: Callable[[Mapping[str, Any]], None]) -> None:
        self._function = function

    def write(self, message: Published, frame: Frame | None) -> None:
        """Messages are for sinks."""

    def write_event(self, event: Mapping[str, Any]) -> None:
        self._function(event)

    def close(self) -> None:
        """Nothing to free."""
