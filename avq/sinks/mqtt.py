"""Alerts to an MQTT broker, spooled on disk: an alert is delivered or still in the spool.

MQTT 5 with QoS 1, one message on its way at a time. An alert leaves the spool when the broker has confirmed it with a
reason code below 0x80; a refusal keeps it. After a broken connection, or a killed process, what was unconfirmed is
sent again with the same id, so receivers may see it twice.
"""

from __future__ import annotations

import hashlib
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import msgspec

from avq.errors import MachineError
from avq.hookspecs import Sink
from avq.sinks import spool
from avq.sinks.mqtt_attempts import REFUSED, Attempts, Trouble, failure_cause, is_about_the_message
from avq.sinks.mqtt_target import MqttTarget, mqtt_target, plain_file
from avq.sinks.spool import Spool
from avq.types import Frame, Published

_KEEPALIVE_S = 20
_SESSION_S = 86_400
_FAREWELL_S = 3.0
_CONNECT_S = 4.0
#: A connection attempt without an outcome is reported after this time.
_ANSWER_S = 4.0
#: A broker that lost our session lost its subscribers' as well: they are given time to come back.
_SETTLE_S = 3.0
_NEVER = float("inf")
_log = logging.getLogger("avq.sinks.mqtt")


class MqttSinkType:
    """``mqtt://host:1883/topic`` and ``mqtts://``; alerts only, never boxes of every frame, never pictures."""

    schemes = ("mqtt", "mqtts")

    def open(self, uri: str, *, labels: Sequence[str]) -> Sink:
        """Raises RequestError on a URI that does not fit, MachineError without paho-mqtt, DataError on the spool."""
        return MqttSink(mqtt_target(uri))

    def check(self, uri: str) -> None:
        """The address without the password, which may be on the vehicle only. Raises RequestError."""
        mqtt_target(uri, with_password=False)

    def require_free(self, uri: str) -> None:
        """Raise DataError when another process uses the spool."""
        spool.require_free(mqtt_target(uri, with_password=False).spool)


class MqttSink:
    """Delivers events of kind "alert".

    The retained topic ``<topic>/status`` says {"online": true}; the broker itself sets it to false when the daemon
    vanishes (Last Will).

    Args:
        target: the broker and the spool.
    """

    wants_pixels = False
    events_only = True
    gauges = frozenset({"waiting", "unsaved", "connected"})

    def __init__(self, target: MqttTarget) -> None:
        self._target = target
        self._delivered = 0
        self._connected = False
        self._greeted = False
        self._settled_at_s = _NEVER
        self._answer_by_s = time.monotonic() + _ANSWER_S
        self._on_its_way: tuple[int, int] | None = None  # message id of paho, number in the spool
        self._greeting = -1  # message id of the status
        self._attempts = Attempts()
        self._trouble = Trouble(target.place, str(target.spool))
        self._calls: SimpleQueue[tuple[str, int, str]] = SimpleQueue()
        self._encode = msgspec.json.Encoder().encode
        self._spool = Spool(target.spool, target.spool_messages)
        try:
            self._client = self._make_client()
        except BaseException:
            self._spool.close()
            raise
        self._thread = threading.Thread(target=self._run, name="mqtt sender", daemon=True)
        self._thread.start()
        self._connect()

    @property
    def cause(self) -> str:
        """Why alerts wait now; "" while they are delivered."""
        return self._trouble.cause

    def report_to(self, emit: Callable[[Mapping[str, Any]], None]) -> None:
        """Set the receiver of the events "alerts_wait" and "alerts_flow"."""
        self._trouble.connect(emit)

    def write(self, message: Published, frame: Frame | None) -> None:
        """Frames are not sent."""

    def write_event(self, event: Mapping[str, Any]) -> None:
        """Spool an alert; it is on disk when this returns, if the disk takes it."""
        if event.get("kind") == "alert":
            self._spool.add(self._encode({key: value for key, value in event.items() if key != "kind"}))
            self._calls.put(("poll", 0, ""))

    def report(self) -> Mapping[str, int]:
        """Return counts of alerts since the start.

        They are spooled, delivered, waiting on disk or in memory, unsaved (in memory alone), or dropped for newer
        ones; ``refused`` counts answers of the broker, so an alert may be refused several times.
        """
        return {
            "spooled": self._spool.added,
            "delivered": self._delivered,
            "waiting": len(self._spool),
            "unsaved": self._spool.unsaved,
            "dropped": self._spool.dropped,
            "refused": self._attempts.refusals,
            "connected": int(self._connected),
        }

    def close(self) -> None:
        """Deliver what can be delivered within seconds; the rest waits on disk for the next start."""
        self._calls.put(("close", 0, ""))
        self._thread.join()
        if waiting := len(self._spool):
            why = f": {self.cause}" if self.cause else ""
            _log.warning("%d alerts are not delivered and wait in %s%s", waiting, self._target.spool, why)
        self._spool.close()

    def _make_client(self) -> Any:
        try:
            from paho.mqtt import client as mqtt
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError:
            raise MachineError(
                "the MQTT sink needs paho-mqtt",
                seen="it is not installed",
                fix='pip install "avq[mqtt]"',
            ) from None
        target = self._target
        name = target.client_id or client_id(target.vehicle, self._spool.identity)
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)
        if target.user:
            client.username_pw_set(target.user, target.password or None)
        if target.tls:
            self._use_tls(client)
        client.will_set(f"{target.topic}/status", self._encode({"online": False}), qos=1, retain=True)
        client.reconnect_delay_set(1, 30)
        client.connect_timeout = _CONNECT_S
        # called on the thread of paho while it holds its locks: they only queue a call
        client.on_connect = self._on_connect
        client.on_connect_fail = lambda *_: self._calls.put(("failed", 0, failure_cause(sys.exc_info()[1])))
        client.on_disconnect = self._on_disconnect
        client.on_publish = lambda _c, _u, mid, code, _p: self._calls.put(
            ("refused", mid, _named(code)) if code.value >= REFUSED else ("taken", mid, "")
        )
        return client

    def _on_connect(self, client: Any, _user: Any, flags: Any, code: Any, _properties: Any) -> None:
        if code.value >= REFUSED:
            shown = " of this user and password" if self._target.user else ""
            self._calls.put(("failed", 0, f"it refuses the connection{shown}: {_named(code)}"))
            return
        client.drop_out_messages()  # the spool decides what is sent again
        self._calls.put(("connected", int(flags.session_present), ""))

    def _on_disconnect(self, _client: Any, _user: Any, flags: Any, code: Any, _properties: Any) -> None:
        by_broker = flags.is_disconnect_packet_from_server
        cause = f"it ended the connection: {_named(code)}" if by_broker else ""
        self._calls.put(("disconnected", int(code.value) if by_broker else 0, cause))

    def _connect(self) -> None:
        from paho.mqtt import client as mqtt
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        session: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        session.SessionExpiryInterval = (
            _SESSION_S  # a later session that is new: the broker was started again
        )
        self._client.connect_async(
            self._target.host,
            self._target.port,
            _KEEPALIVE_S,
            clean_start=mqtt.MQTT_CLEAN_START_FIRST_ONLY,
            properties=session,
        )
        self._client.loop_start()

    def _use_tls(self, client: Any) -> None:
        try:
            chosen = self._target.ca_file
            client.tls_set(ca_certs=str(plain_file(chosen)) if chosen else None)
        except (OSError, ValueError) as error:
            raise MachineError(
                "the certificate authority cannot be used",
                seen=f"{self._target.ca_file}: {error}",
                fix="ca_file = FILE.pem",
            ) from None

    def _run(self) -> None:
        """The sender: one message on its way at a time, until closed and empty, offline, or out of patience."""
        leave_at_s = _NEVER
        while leave_at_s == _NEVER or (self._connected and self._on_its_way is not None):
            what, value, text = self._next_call(leave_at_s)
            if what == "close":
                leave_at_s = time.monotonic() + _FAREWELL_S
            elif what == "connected":
                self._arrive(resumed=bool(value))
            elif what in ("failed", "disconnected"):
                self._lose(what, value, text)
            elif what in ("taken", "refused"):
                self._answered(value, text)
            if time.monotonic() >= leave_at_s:
                break
            if time.monotonic() >= self._answer_by_s:
                self._answer_by_s = _NEVER
                self._trouble.begins(f"no answer within {_ANSWER_S:g} s")
            if self._connected and self._on_its_way is None:
                self._send_next()
        self._leave()

    def _next_call(self, leave_at_s: float) -> tuple[str, int, str]:
        now_s = time.monotonic()
        retry_at_s = self._attempts.next_s(now_s) if self._connected and self._on_its_way is None else _NEVER
        until_s = min(leave_at_s, self._settled_at_s, self._answer_by_s, retry_at_s)
        try:
            return self._calls.get(timeout=None if until_s == _NEVER else max(0.0, until_s - now_s))
        except Empty:
            return "poll", 0, ""

    def _send_next(self) -> None:
        now_s = time.monotonic()
        if now_s < self._settled_at_s < _NEVER or not self._attempts.may_send(now_s):
            return
        self._settled_at_s = _NEVER
        waiting = self._spool.oldest(self._attempts.all_refused())
        if waiting is None:
            waiting = self._spool.oldest(self._attempts.passed_over(now_s))
        if waiting is not None:
            mid = self._client.publish(self._target.topic, waiting.body, qos=1).mid
            self._on_its_way = (mid, waiting.number)

    def _answered(self, mid: int, refusal: str) -> None:
        """Take the broker's answer to a message; ``refusal`` is "" for a confirmed one."""
        if mid == self._greeting and refusal:
            _log.warning("broker %s refuses %s/status: %s", self._target.place, self._target.topic, refusal)
        if self._on_its_way is None or mid != self._on_its_way[0]:
            return
        number = self._on_its_way[1]
        self._on_its_way = None
        if refusal:
            self._attempts.keep(self._spool.numbers())
            self._attempts.refused(number, time.monotonic())
            self._trouble.begins(f"it refuses an alert: {refusal}")
            return
        self._attempts.taken(number)
        self._spool.remove(number)
        self._delivered += 1
        self._trouble.ends()

    def _arrive(self, *, resumed: bool) -> None:
        """Connected: say so, and begin to send."""
        self._answer_by_s = _NEVER
        self._on_its_way = None
        if not resumed and self._greeted:
            self._settled_at_s = time.monotonic() + _SETTLE_S
        self._connected = self._greeted = True
        self._greeting = self._publish_status(online=True)
        if not self._attempts.all_refused():
            self._trouble.ends()

    def _lose(self, what: str, code: int, cause: str) -> None:
        """Take the end of a connection, or of an attempt to make one."""
        if what == "disconnected" and not self._connected and self._answer_by_s == _NEVER:
            return  # the end of an attempt whose failure was reported already
        now_s = time.monotonic()
        if self._connected and self._on_its_way is not None:
            number = self._on_its_way[1]
            if is_about_the_message(code):
                self._attempts.refused(number, now_s)
            else:
                self._attempts.broke(number, now_s)
        broken = (
            "the connection was lost" if self._connected else "it closed the connection before it answered"
        )
        self._trouble.begins(cause or broken)
        self._connected, self._on_its_way = False, None
        self._settled_at_s = self._answer_by_s = _NEVER

    def _publish_status(self, *, online: bool) -> int:
        body = self._encode({"online": online})
        return int(self._client.publish(f"{self._target.topic}/status", body, qos=1, retain=True).mid)

    def _leave(self) -> None:
        if self._connected:
            self._publish_status(online=False)
            self._client.disconnect()
            self._client.loop_stop()  # waits until the farewell is out
        else:
            self._client.disconnect()  # its thread may be inside a connection attempt: not waited for


def client_id(vehicle: str, identity: str) -> str:
    """Return an id that is the same at every start, and unlike that of another vehicle or spool."""
    words = "\n".join((socket.gethostname(), vehicle, identity))
    return f"avq-{hashlib.blake2s(words.encode(), digest_size=8).hexdigest()}"


def _named(code: Any) -> str:
    """Return name and number of a reason code of MQTT 5."""
    return f"{str(code).lower()} (0x{code.value:02X})"
