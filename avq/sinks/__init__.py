"""Messages out: JSON lines, alerts over MQTT, boxes over Zenoh, and a function of the same process.

The recorder is ``avq.recording``. Libraries of a transport are imported when a sink of it is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from avq.errors import RequestError, nearest
from avq.hookspecs import Sink, SinkType
from avq.redaction import redact_uri
from avq.sinks.alerts import AlertSink, rule_of
from avq.sinks.jsonl import CallbackSink, JsonLinesSink, JsonLinesSinkType
from avq.sinks.mqtt import MqttSinkType
from avq.sinks.zenoh import ZenohSinkType


def open_sink(uri: str, types: Sequence[SinkType], *, labels: Sequence[str]) -> Sink:
    """Open ``uri`` (``-``, ``out.jsonl``, ``jsonl:out``, ``out.mcap?image=png``) with the type that claims it.

    Raises:
        RequestError: no type claims it, or its folder does not exist.
        DataError: it cannot be created.
    """
    return sink_type(uri, types).open(uri, labels=labels)


def sink_type(uri: str, types: Sequence[SinkType]) -> SinkType:
    """Return the type that claims ``uri``. Raises RequestError when none does."""
    claims = {scheme: kind for kind in types for scheme in kind.schemes}
    key = sink_key(uri, set(claims))
    if key not in claims:
        raise RequestError(
            f"no sink writes '{redact_uri(uri)}'", seen=key or "no suffix", fix=nearest(key, claims)
        )
    return claims[key]


def sink_key(uri: str, known: set[str]) -> str:
    """Return the scheme or suffix by which a type claims ``uri``."""
    scheme, colon, _ = uri.partition(":")
    if uri in known:
        return uri
    if colon and (scheme in known or "://" in uri):
        return scheme
    return Path(uri.partition("?")[0]).suffix.lower()


def builtin_sinks() -> tuple[SinkType, ...]:
    """Return the built-in types, except the recorder (``avq.recording.RecorderSinkType``)."""
    return (JsonLinesSinkType(), MqttSinkType(), ZenohSinkType())


__all__ = [
    "AlertSink",
    "CallbackSink",
    "JsonLinesSink",
    "JsonLinesSinkType",
    "builtin_sinks",
    "open_sink",
    "rule_of",
    "sink_key",
    "sink_type",
]
