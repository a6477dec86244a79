"""Delivery to sinks: each on a thread of its own behind a bounded queue; missed messages are counted."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypedDict, cast, runtime_checkable

from avq.hookspecs import AlertSource, EventSink, ReportingSink, Sink, TimingSink
from avq.redaction import redact
from avq.text import map_texts, utf8
from avq.types import Frame, Published, StageTimes
from avq.types.frame import Event

MESSAGES_QUEUED = 256
PICTURES_QUEUED = 8
#: Seconds that all sinks together have to write queued messages when a run ends.
DRAIN_S = 10.0
_POLL_S = 0.001
#: Pause between two attempts at a sink that failed for a cause that may pass.
RETRY_S = 1.0
#: Causes that may pass: no space, no descriptors, no memory, a device or a network that is away.
_TEMPORARY = frozenset(
    getattr(errno, name)
    for name in (
        "ENOSPC", "EDQUOT", "EMFILE", "ENFILE", "ENOMEM", "ENOBUFS", "EIO", "EROFS", "EAGAIN", "EINTR", "ESTALE",
        "ETIMEDOUT", "ENETDOWN", "ENETUNREACH", "EHOSTUNREACH", "ECONNREFUSED", "ECONNRESET", "ECONNABORTED",
    )
)  # fmt: skip
_log = logging.getLogger("avq.sinks")


class SinkRow(TypedDict):
    """Counts of one sink in summary and status; counters that the sink itself reports are further keys."""

    name: str
    address: str
    written: int
    missed: int
    queued: int
    error: str
    cause: str


@runtime_checkable
class ConnectedSink(Protocol):
    """A built-in sink that keeps messages while its receiver is away or refuses them."""

    @property
    def cause(self) -> str:
        """Why messages wait now; "" while they are delivered."""
        ...

    def report_to(self, emit: Callable[[Mapping[str, Any]], None]) -> None:
        """Set the receiver of events about the connection; called once, before the first message."""
        ...


@dataclass(frozen=True, slots=True)
class SinkReport:
    """Counts of one sink.

    Attributes:
        name: its type.
        written: messages, or events for a sink of events.
        missed: messages and events that met a full queue or a failed sink.
        error: that ended the sink, or keeps it from writing now; "" while it writes.
        numbers: counters that the sink itself reports.
        address: where it writes, without credentials.
        queued: messages and events that wait for it.
        gauges: keys of ``numbers`` that may also fall.
        cause: why messages wait for a receiver now; "" while they are delivered.
    """

    name: str
    written: int
    missed: int
    error: str
    numbers: Mapping[str, int] = field(default_factory=dict)
    address: str = ""
    queued: int = 0
    gauges: frozenset[str] = frozenset()
    cause: str = ""

    def as_json(self) -> SinkRow:
        """Return one row of summary and status; a sink number named as a key here becomes "own_NAME"."""
        row: SinkRow = {
            "name": self.name,
            "address": self.address,
            "written": self.written,
            "missed": self.missed,
            "queued": self.queued,
            "error": self.error,
            "cause": self.cause,
        }
        own = {f"own_{name}" if name in row else name: value for name, value in self.numbers.items()}
        return cast("SinkRow", {**row, **own})


@dataclass(frozen=True, slots=True)
class _Item:
    message: Published
    frame: Frame | None
    times: StageTimes


def _is_temporary(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _TEMPORARY


class SinkWorker:
    """Runs one sink on a thread of its own, behind a bounded queue.

    Args:
        sink: written and closed on that thread only.
        name: for reports.
        capacity: messages that may wait in the queue.
        address: where the sink writes, for reports.
    """

    def __init__(self, sink: Sink, name: str, capacity: int, address: str = "") -> None:
        self.error = ""
        self._retry_at_s: float | None = None  # after a temporary error
        self._address = address
        self._sink = sink
        self._name = name
        self._capacity = capacity
        self._queue: SimpleQueue[_Item | Event | None] = SimpleQueue()  # bounded by offer()
        self._written = 0
        self._unwritten = 0  # counted by the worker's thread
        self._refused = 0  # counted by the loop
        self._missed_events = 0  # events, from any thread
        self._lock = threading.Lock()  # of events: they come from more than one thread
        self._in_flight = False  # the sink is writing one
        self._timing_sink = sink if isinstance(sink, TimingSink) else None
        self._event_sink = sink if isinstance(sink, EventSink) else None
        self._reporting_sink = sink if isinstance(sink, ReportingSink) else None
        self._events_only = self._event_sink is not None and self._event_sink.events_only
        self._may_block = True
        self._thread = threading.Thread(target=self._run, name=f"sink {name}", daemon=True)
        self._thread.start()

    def offer(self, message: Published, frame: Frame, times: StageTimes, *, wait: bool) -> None:
        """Queue one message.

        Args:
            message: to write.
            frame: its pixels are copied when the sink wants them.
            times: of the stages.
            wait: wait for room in a full queue (files); else the message is missed (live cameras).
        """
        if self._events_only:
            return
        if not self._has_room(wait):
            self._refused += 1
            return
        copied = replace(frame, pixels=frame.pixels.copy()) if self._sink.wants_pixels else None
        self._queue.put(_Item(message, copied, times))

    def event(self, event: Event) -> None:
        """Queue one event; it is missed when the queue is full."""
        if self._event_sink is None:
            return
        with self._lock:
            if self._has_room(wait=False):
                self._queue.put(event)
            else:
                self._missed_events += 1

    def _has_room(self, wait: bool) -> bool:
        while self._queue.qsize() >= self._capacity:
            if not (wait and self._may_block):
                return False
            time.sleep(_POLL_S)
        return True

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self.error and not self._may_retry():
                self._unwritten += 1
                continue
            self._in_flight = True
            try:
                self._write(item)
            except (Exception, SystemExit) as error:  # a failing sink must not end the run
                self._fail(f"{type(error).__name__}: {error}", temporary=_is_temporary(error))
                self._unwritten += 1
            else:
                self._recovered()
            self._in_flight = False
        self._close_sink()

    @property
    def takes_times(self) -> bool:
        """Whether the sink also takes the stage times of every message."""
        return self._timing_sink is not None

    @property
    def ended(self) -> bool:
        """Whether an error ended the sink for good."""
        return bool(self.error) and self._retry_at_s is None

    def _may_retry(self) -> bool:
        return self._retry_at_s is not None and time.monotonic() >= self._retry_at_s

    def _recovered(self) -> None:
        if self.error:
            self.error, self._retry_at_s = "", None
            _log.warning(
                "sink %s: works again; %d messages were missed so far",
                self._address or self._name,
                self._unwritten,
            )

    def _write(self, item: _Item | Event) -> None:
        if not isinstance(item, _Item):
            if self._event_sink is not None:
                self._event_sink.write_event(item)
                self._written += self._events_only
            return
        if self._timing_sink is not None:
            self._timing_sink.write_timing(item.message, item.times)
        self._sink.write(item.message, item.frame)
        self._written += 1

    def _fail(self, error: str, *, temporary: bool = False) -> None:
        """Keep the first error, and log it; after a temporary one, messages are tried again every second."""
        self._retry_at_s = time.monotonic() + RETRY_S if temporary else None
        if not self.error:
            self.error = redact(utf8(error))
            _log.warning("sink %s: %s", self._address or self._name, self.error)

    def _close_sink(self) -> None:
        try:
            self._sink.close()
        except Exception as error:
            self._fail(f"{type(error).__name__}: {error}")

    def stop_blocking(self) -> None:
        """Stop waiting for room in the queue, from now on."""
        self._may_block = False

    def finish(self) -> None:
        """Accept no more messages; write the queued ones, then close the sink."""
        self._queue.put(None)

    def finished(self, timeout_s: float) -> SinkReport:
        """Wait for the end after ``finish``; a sink that needs more than ``timeout_s`` is abandoned."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._refused += self._abandon()
            self._fail("did not finish in time")
        return self.report()

    def close(self, timeout_s: float) -> SinkReport:
        """Finish and wait for the end."""
        self.finish()
        return self.finished(timeout_s)

    def report(self) -> SinkReport:
        """Return the counts so far."""
        missed = self._refused + self._missed_events + self._unwritten
        queued = self._queue.qsize() if self._thread.is_alive() else 0
        gauges = frozenset() if self._reporting_sink is None else frozenset(self._reporting_sink.gauges)
        numbers = self._numbers()
        return SinkReport(
            self._name,
            self._written,
            missed,
            self.error,
            numbers,
            self._address,
            queued,
            gauges,
            self._cause(),
        )

    def _cause(self) -> str:
        return self._sink.cause if isinstance(self._sink, ConnectedSink) else ""

    def _numbers(self) -> Mapping[str, int]:
        """Counters reported by the sink; empty if it raises."""
        try:
            return {} if self._reporting_sink is None else dict(self._reporting_sink.report())
        except Exception:
            return {}

    def _abandon(self) -> int:
        """Empty the queue of a hung sink; return the number lost, the one it is writing included."""
        left = int(self._in_flight)
        while True:
            try:
                left += self._queue.get_nowait() is not None
            except Empty:
                return left


class Publisher:
    """Delivers messages and events to all sinks of a run.

    Args:
        sinks: closed by ``close()``.
        on_event: called with every event, on a thread of its own.
        addresses: where the sinks write, in their order, for reports; may be shorter or "".
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        on_event: Callable[[Event], None] | None = None,
        addresses: Sequence[str] = (),
    ) -> None:
        rows = list(zip(sinks, [*addresses, *[""] * len(sinks)], strict=False))
        self._workers = [_worker_of(*row) for row in rows if not isinstance(row[0], AlertSource)]
        self._alert_workers = [_worker_of(*row) for row in rows if isinstance(row[0], AlertSource)]
        self._listener = SinkWorker(_Listener(on_event), "events", MESSAGES_QUEUED) if on_event else None
        for sink in sinks:
            if isinstance(sink, AlertSource):
                sink.connect(self._relay)
            if isinstance(sink, ConnectedSink):
                sink.report_to(self._relay)

    def _relay(self, event: Mapping[str, Any]) -> None:
        """Hand on an event of a sink."""
        self.event(cast("Event", event))

    def publish(self, message: Published, frame: Frame, times: StageTimes, *, wait: bool) -> None:
        """Queue one message for every sink; pixels are copied for those that want them."""
        for worker in (*self._alert_workers, *self._workers):
            worker.offer(message, frame, times, wait=wait)

    def record(self, event: Event) -> None:
        """Queue one event for flight records only: sinks that also take stage times."""
        for worker in self._workers:
            if worker.takes_times:
                worker.event(event)

    def event(self, event: Event) -> None:
        """Queue one event for every sink of events, and for the listener; it holds no secret and no broken text."""
        event = cast("Event", map_texts(event, lambda text: redact(utf8(text))))
        for worker in (*self._alert_workers, *self._workers, *([self._listener] if self._listener else [])):
            worker.event(event)

    @property
    def alive(self) -> bool:
        """False when there were sinks and all of them have ended."""
        return not self._workers or any(not worker.ended for worker in self._workers)

    @property
    def working(self) -> bool:
        """False when there were sinks and all of them fail now."""
        return not self._workers or any(not worker.error for worker in self._workers)

    def reports(self) -> list[SinkReport]:
        """Return the counts of every sink so far; from any thread."""
        return [worker.report() for worker in (*self._alert_workers, *self._workers)]

    def stop_blocking(self) -> None:
        """Stop waiting for sinks, because the run ends."""
        for worker in (*self._alert_workers, *self._workers):
            worker.stop_blocking()

    def close(self, timeout_s: float = DRAIN_S) -> list[SinkReport]:
        """Drain and close every sink, within ``timeout_s`` for all of them together."""
        began_s = time.monotonic()
        reports = _ended(
            self._alert_workers, began_s + timeout_s / 2
        )  # their last alerts still reach the others
        listener = [self._listener] if self._listener is not None else []
        return [*reports, *_ended([*self._workers, *listener], began_s + timeout_s)[: len(self._workers)]]


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

    def __init__(self, function: Callable[[Event], None]) -> None:
        self._function = function

    def write(self, message: Published, frame: Frame | None) -> None:
        """Messages are ignored."""

    def write_event(self, event: Mapping[str, Any]) -> None:
        self._function(cast("Event", event))

    def close(self) -> None:
        """Nothing to free."""
