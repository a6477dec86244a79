"""Alerts to an MQTT broker, spooled on disk: exactly once while the process lives, never lost when it is killed.

QoS 2, one message on its way at a time, so the order is kept. A message leaves the spool when the broker has
confirmed it; a process killed in between sends it again with the same id. The session is begun anew once per process,
because message ids of a killed one mean nothing, and resumed after that; where the broker lost it, the message on its
way is sent again.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from avq.errors import MachineError, RequestError
from avq.hookspecs import Sink
from avq.sinks import spool
from avq.sinks.spool import Spool
from avq.types import Frame, Published
from avq.uris import parameters, redact_credentials, whole

PARAMETERS = ("password_file", "password_env", "ca_file", "client_id", "spool", "spool_messages")
_PORTS = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True)
class MqttTarget:
    """A broker, a topic, and the folder of undelivered messages."""

    host: str
    port: int
    topic: str
    tls: bool
    user: str
    password: str
    ca_file: str
    client_id: str
    spool: Path
    spool_messages: int


def mqtt_target(
    uri: str, environment: Mapping[str, str] = os.environ, *, with_password: bool = True
) -> MqttTarget:
    """Read ``mqtt://user@host:1883/topic`` and the password it points to.

    Raises:
        RequestError: the URI or its password file is not valid.
    """
    parts, port = _split(uri)
    table = parameters(uri, PARAMETERS)
    topic = unquote(parts.path.strip("/"))
    if not parts.hostname or not topic or "#" in uri or any(sign in topic for sign in "+\0"):
        raise RequestError(
            "an MQTT sink needs a host and a topic without wildcards",
            seen=redact_credentials(uri),
            fix="mqtt://broker.example:1883/vehicles/17/alerts",
        )
    if parts.password is not None:
        raise RequestError(
            "a password does not belong in a URI: URIs are logged",
            seen=redact_credentials(uri),
            fix="password_file = FILE, or password_env = NAME of an environment variable",
        )
    user = unquote(parts.username or "")
    name = f"{parts.hostname}_{port}_{topic}"
    spool = Path(table["spool"]) if "spool" in table else _state_folder(environment) / _file_name(name)
    return MqttTarget(
        host=parts.hostname,
        port=port,
        topic=topic,
        tls=parts.scheme == "mqtts",
        user=user,
        password=_password(table, user, environment) if with_password else "",
        ca_file=table.get("ca_file", ""),
        client_id=table.get("client_id") or _client_id(name),
        spool=spool,
        spool_messages=whole(table, "spool_messages", 10_000, 2, 1_000_000),
    )


def _split(uri: str) -> tuple[SplitResult, int]:
    try:
        parts = urlsplit(uri)
        return parts, parts.port or _PORTS[parts.scheme]
    except ValueError as error:
        raise RequestError(
            "not an MQTT address", seen=redact_credentials(uri), fix=f"{error}; mqtt://host:1883/topic"
        ) from None


def _password(table: Mapping[str, str], user: str, environment: Mapping[str, str]) -> str:
    file, variable = table.get("password_file"), table.get("password_env")
    if (file or variable) and not user:
        raise RequestError(
            "a password without a user", seen="no user in the URI", fix="mqtt://user@host/topic"
        )
    if file:
        try:
            return plain_file(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError("the password file cannot be read", seen=str(error), fix="check it") from None
    if variable and variable not in environment:
        raise RequestError(
            f"the environment variable '{variable}' is not set", seen=variable, fix=f"export {variable}=..."
        )
    return environment[variable] if variable else ""


def plain_file(name: str) -> Path:
    """Return the path of a regular file; raise OSError for a FIFO, device or folder, whose reading may block."""
    path = Path(name)
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "a FIFO, device or folder, not a file", name)
    return path


def _state_folder(environment: Mapping[str, str]) -> Path:
    """systemd's state folder of the service, else the user's."""
    if given := environment.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0]) / "spool"
    home = environment.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(home) / "avq" / "spool"


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name)[:120]


def _client_id(name: str) -> str:
    """The same at every start on this machine; different for every target."""
    digest = hashlib.blake2s(f"{socket.gethostname()}\n{name}".encode(), digest_size=8).hexdigest()
    return f"avq-{digest}"


_KEEPALIVE_S = 20
_SESSION_S = 86_400
_FAREWELL_S = 3.0
_CONNECT_S = 5.0
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
        self._fresh = False  # the broker has forgotten earlier processes
        self._greeted = False
        self._settled_at_s = _NEVER
        self._calls: SimpleQueue[tuple[str, int]] = SimpleQueue()
        self._encode = msgspec.json.Encoder().encode
        self._client = self._make_client()
        self._spool = Spool(target.spool, target.spool_messages)
        self._thread = threading.Thread(target=self._run, name="mqtt sender", daemon=True)
        self._thread.start()
        self._connect(new_session=True)

    def write(self, message: Published, frame: Frame | None) -> None:
        """Frames are not sent."""

    def write_event(self, event: Mapping[str, Any]) -> None:
        """Spool an alert; it is on disk when this returns, if the disk takes it."""
        if event.get("kind") == "alert":
            self._spool.add(self._encode({key: value for key, value in event.items() if key != "kind"}))
            self._calls.put(("poll", 0))

    def report(self) -> Mapping[str, int]:
        """Alerts spooled since the start, delivered, waiting on disk or in memory alone, given up for newer ones."""
        return {
            "spooled": self._spool.added,
            "delivered": self._delivered,
            "waiting": len(self._spool),
            "unsaved": self._spool.unsaved,
            "dropped": self._spool.dropped,
            "connected": int(self._connected),
        }

    def close(self) -> None:
        """Deliver what can be delivered within seconds; the rest waits on disk for the next start."""
        self._calls.put(("close", 0))
        self._thread.join()
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
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=target.client_id, protocol=mqtt.MQTTv5)
        if target.user:
            client.username_pw_set(target.user, target.password or None)
        if target.tls:
            self._use_tls(client)
        client.will_set(f"{target.topic}/status", self._encode({"online": False}), qos=1, retain=True)
        client.reconnect_delay_set(1, 30)
        client.connect_timeout = _CONNECT_S
        # called on the thread of paho while it holds its locks: they only queue a call
        client.on_connect = self._on_connect
        client.on_disconnect = lambda *_: self._calls.put(("disconnected", 0))
        client.on_publish = lambda _c, _u, mid, code, _p: self._calls.put(
            ("refused" if code.is_failure else "sent", mid)
        )
        return client

    def _on_connect(self, client: Any, _user: Any, flags: Any, code: Any, _properties: Any) -> None:
        if code.is_failure:
            _log.warning(
                "the broker %s:%d refused the connection: %s", self._target.host, self._target.port, code
            )
            return
        _log.info("connected to the broker %s:%d", self._target.host, self._target.port)
        if not flags.session_present:
            client.drop_out_messages()  # paho would only confirm what the broker has forgotten
        self._calls.put(("connected", int(flags.session_present)))

    def _connect(self, *, new_session: bool) -> None:
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        session: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        session.SessionExpiryInterval = 0 if new_session else _SESSION_S
        self._client.connect_async(
            self._target.host, self._target.port, _KEEPALIVE_S, clean_start=new_session, properties=session
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
        on_its_way: tuple[int, int] | None = None  # message id of paho, number in the spool
        leave_at_s = _NEVER
        while leave_at_s == _NEVER or (self._connected and on_its_way is not None):
            what, value = self._next_call(min(leave_at_s, self._settled_at_s))
            if what == "close":
                leave_at_s = time.monotonic() + _FAREWELL_S
            elif what == "connected":
                on_its_way = on_its_way if value else None
                self._arrive(resumed=bool(value))
            elif what == "disconnected":
                if self._connected:
                    _log.warning("connection to the broker lost; alerts wait in %s", self._target.spool)
                self._connected, self._settled_at_s = False, _NEVER
            elif what in ("sent", "refused") and on_its_way is not None and value == on_its_way[0]:
                if what == "sent":
                    self._spool.remove(on_its_way[1])
                    self._delivered += 1
                on_its_way = None
            if time.monotonic() >= leave_at_s:
                break
            if self._connected and on_its_way is None and what != "refused":
                on_its_way = self._send_next()
        self._leave()

    def _next_call(self, until_s: float) -> tuple[str, int]:
        try:
            return self._calls.get(
                timeout=None if until_s == _NEVER else max(0.0, until_s - time.monotonic())
            )
        except Empty:
            return "poll", 0

    def _send_next(self) -> tuple[int, int] | None:
        if time.monotonic() < self._settled_at_s < _NEVER:
            return None
        self._settled_at_s = _NEVER
        waiting = self._spool.oldest()
        if waiting is None:
            return None
        return self._client.publish(self._target.topic, waiting.body, qos=2).mid, waiting.number

    def _arrive(self, *, resumed: bool) -> None:
        """Connected: the first time only to end the session of an earlier process."""
        if not self._fresh:
            self._fresh = True
            self._client.disconnect()
            self._client.loop_stop()
            self._connect(new_session=False)
            return
        if not resumed and self._greeted:
            self._settled_at_s = time.monotonic() + _SETTLE_S
        self._connected = self._greeted = True
        self._client.publish(
            f"{self._target.topic}/status", self._encode({"online": True}), qos=1, retain=True
        )

    def _leave(self) -> None:
        if self._connected:
            farewell = self._encode({"online": False})
            self._client.publish(f"{self._target.topic}/status", farewell, qos=1, retain=True)
            self._client.disconnect()
            self._client.loop_stop()  # waits until the farewell is out
        else:
            self._client.disconnect()  # its thread may be inside a connection attempt: not waited for
