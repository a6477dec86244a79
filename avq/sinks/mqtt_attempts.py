"""Which alert is sent next, and what is reported when none can be."""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

#: Reason codes of MQTT 5 from here on are refusals.
REFUSED = 0x80
#: Reasons for which a broker ends a connection because of the message that it was sent.
_ABOUT_THE_MESSAGE = frozenset({0x81, 0x82, 0x83, 0x87, 0x90, 0x94, 0x95, 0x97, 0x99, 0x9B})
#: A message that was on its way so often when the connection broke is passed over for a while.
_BREAKS = 3
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
#: A connection that held so long ends the silence about causes that were reported before.
_STABLE_S = 60.0
_log = logging.getLogger("avq.sinks.mqtt")


def is_about_the_message(code: int) -> bool:
    """Whether a broker that ends the connection with this reason refuses the message on its way."""
    return code in _ABOUT_THE_MESSAGE


class Attempts:
    """Refused messages wait with growing pauses; others pass them. Numbers are those of the spool.

    After a refusal nothing is sent for 1, 2, 4 ... 30 seconds: a broker that refuses one message often refuses all.
    The first repeated message that is taken ends all pauses.
    """

    def __init__(self) -> None:
        self.refusals = 0
        self._in_a_row = 0
        self._not_before_s = 0.0
        self._retry_at_s: dict[int, float] = {}
        self._counts: dict[int, int] = {}
        self._breaks: dict[int, int] = {}

    def passed_over(self, now_s: float) -> frozenset[int]:
        """Return the messages that are not sent now."""
        return frozenset(number for number, at_s in self._retry_at_s.items() if at_s > now_s)

    def all_refused(self) -> frozenset[int]:
        """Return the messages that were refused and not taken since."""
        return frozenset(self._retry_at_s)

    def may_send(self, now_s: float) -> bool:
        return now_s >= self._not_before_s

    def next_s(self, now_s: float) -> float:
        """Return when something may be sent that may not be sent now; infinity where there is nothing."""
        if now_s < self._not_before_s:
            return self._not_before_s
        return min((at_s for at_s in self._retry_at_s.values() if at_s > now_s), default=float("inf"))

    def keep(self, numbers: Collection[int]) -> None:
        """Forget messages that are not in the spool any more."""
        tables: tuple[dict[int, Any], ...] = (self._retry_at_s, self._counts, self._breaks)
        for table in tables:
            for number in table.keys() - numbers:
                del table[number]

    def refused(self, number: int, now_s: float) -> None:
        self.refusals += 1
        self._in_a_row += 1
        self._not_before_s = now_s + _pause_s(self._in_a_row)
        self._counts[number] = self._counts.get(number, 0) + 1
        self._retry_at_s[number] = now_s + _pause_s(self._counts[number])

    def broke(self, number: int, now_s: float) -> None:
        """Note that the connection broke while the message was on its way."""
        self._breaks[number] = self._breaks.get(number, 0) + 1
        if self._breaks[number] % _BREAKS == 0:
            self.refused(number, now_s)

    def taken(self, number: int) -> None:
        self._in_a_row, self._not_before_s = 0, 0.0
        if self._retry_at_s.pop(number, None) is not None:
            self._retry_at_s = dict.fromkeys(self._retry_at_s, 0.0)
        self._counts.pop(number, None)
        self._breaks.pop(number, None)


def _pause_s(count: int) -> float:
    return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(count - 1, 10))


class Trouble:
    """Reports why alerts are not delivered: each cause once, until the connection was stable for a minute.

    Args:
        place: the broker, for messages.
        spool: where alerts wait, for messages.
    """

    def __init__(self, place: str, spool: str) -> None:
        self.cause = ""
        self._place = place
        self._spool = spool
        self._reported: set[str] = set()
        self._good_since_s: float | None = None
        self._emit: Callable[[Mapping[str, Any]], None] | None = None
        self._unsent: list[Mapping[str, Any]] = []

    def connect(self, emit: Callable[[Mapping[str, Any]], None]) -> None:
        """Set the receiver of events; those from before are handed on."""
        self._emit = emit
        while self._unsent:
            emit(self._unsent.pop(0))

    def begins(self, cause: str) -> None:
        """Alerts wait because of ``cause``."""
        if self._good_since_s is not None and time.monotonic() - self._good_since_s >= _STABLE_S:
            self._reported.clear()
        self._good_since_s, self.cause = None, cause
        if cause not in self._reported:
            self._reported.add(cause)
            _log.warning("broker %s: %s; alerts wait in %s", self._place, cause, self._spool)
            self._event("alerts_wait", cause)

    def ends(self) -> None:
        """Alerts are delivered."""
        if self._good_since_s is None:
            self._good_since_s = time.monotonic()
            again = "connected" if not self._reported else "connected again"
            if again not in self._reported:
                self._reported.add(again)
                _log.info("broker %s: %s", self._place, again)
                self._event("alerts_flow", again)
        self.cause = ""

    def _event(self, kind: str, reason: str) -> None:
        event = {"kind": kind, "t_ns": time.monotonic_ns(), "broker": self._place, "reason": reason}
        if self._emit is None:
            self._unsent.append(event)
        else:
            self._emit(event)


def failure_cause(error: BaseException | None) -> str:
    """Describe in words why a connection could not be made."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message or error.reason}"
    if isinstance(error, ssl.SSLError):
        return f"TLS does not work: {(error.reason or str(error)).replace('_', ' ').lower()}"
    if isinstance(error, OSError):
        kinds = (
            (socket.gaierror, "the name of the host is not known"),
            (ConnectionRefusedError, "nothing accepts connections there"),
            (TimeoutError, "no answer in time"),
            (ConnectionError, "it closed the connection before it answered"),
        )
        named = next((words for kind, words in kinds if isinstance(error, kind)), "")
        return named or (error.strerror or str(error)).lower()
    return f"no connection: {error!r}" if error is not None else "no connection"
