"""Messages out: JSON lines, alerts over MQTT, boxes over Zenoh, and a function of the same process.

The recorder is ``avq.recording``. Libraries of a transport are imported when a sink of it is opened.
"""

from __future__ import annotations

from avq.hookspecs import SinkType
from avq.sinks.alerts import AlertSink, rule_of
from avq.sinks.callback import CallbackSink
from avq.sinks.jsonl import JsonLinesSink, JsonLinesSinkType
from avq.sinks.mqtt import MqttSinkType
from avq.sinks.uri import open_sink, sink_key
from avq.sinks.zenoh import ZenohSinkType


def builtin_sinks() -> tuple[SinkType, ...]:
    """The kinds avq brings, except the recorder (``avq.recording.RecorderSinkType``)."""
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
]
