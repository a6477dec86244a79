"""Open sinks in bounded time: one that hangs or breaks when it is opened costs that sink, not the run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from avq.daemon.engine_recovery import cause_of
from avq.errors import AvqError
from avq.hookspecs import Sink, SinkType
from avq.output_lock import LockingSinkType
from avq.redaction import redact_uri
from avq.sinks import open_sink, sink_type
from avq.types import Frame, Published

STANDARD_OUTPUT = "-"
#: A sink may take so long to open.
OPEN_S = 5.0
_log = logging.getLogger("avq.sinks")


class UnopenedSink:
    """Stands for a sink that could not be opened; its first message reports why."""

    wants_pixels = False

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def write(self, message: Published, frame: Frame | None) -> None:
        raise RuntimeError(self._reason)

    def close(self) -> None:
        """Nothing to free."""


def open_sinks(uris: Sequence[str], types: Sequence[SinkType], labels: tuple[str, ...]) -> list[Sink]:
    """Open all sinks; before that, check that no other writer has one of their outputs.

    Raises:
        AvqError: a URI is wrong, or an output is taken or cannot be written; no sink is left open.
    """
    for uri in uris:
        kind = sink_type(uri, types)
        if isinstance(kind, LockingSinkType):
            kind.require_free(uri)
    opened: list[Sink] = []
    try:
        for uri in uris:
            sink = open_in_time(place_of(uri), partial(open_sink, uri, types, labels=labels))
            opened.append(sink)
    except AvqError:
        for sink in opened:
            with suppress(Exception):  # the error of the other sink is the one to report
                sink.close()
        raise
    return opened


def place_of(uri: str) -> str:
    """Return where a sink writes, without credentials and parameters."""
    if uri == STANDARD_OUTPUT:
        return "standard output"
    return redact_uri(uri).partition("?")[0]


def open_in_time(address: str, open_it: Callable[[], Sink], seconds: float = OPEN_S) -> Sink:
    """Open a sink on a thread of its own.

    Args:
        address: for messages, without credentials.
        open_it: opens the sink.
        seconds: after which it is left out.

    Returns:
        The sink; an ``UnopenedSink`` when it did not open in time or raised what is no AvqError.

    Raises:
        AvqError: the sink refused the request.
    """
    opened: list[Sink] = []
    errors: list[BaseException] = []
    abandoned = threading.Event()

    def run() -> None:
        try:
            sink = open_it()
        except BaseException as error:
            errors.append(error)
            return
        opened.append(sink)
        if abandoned.is_set():
            sink.close()

    thread = threading.Thread(target=run, name=f"open {address}", daemon=True)
    thread.start()
    thread.join(seconds)
    if opened:
        return opened[0]
    if errors and isinstance(errors[0], AvqError):
        raise errors[0]
    abandoned.set()
    reason = f"could not be opened: {cause_of(errors[0])}" if errors else f"did not open within {seconds:g} s"
    _log.warning("sink %s: %s; the run continues without it", address, reason)
    return UnopenedSink(reason)
