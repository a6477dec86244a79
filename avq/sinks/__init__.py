"""Messages out: JSON lines, and a function of the same process. The recorder is ``avq.recording``."""

from __future__ import annotations

from avq.hookspecs import SinkType
from avq.sinks.callback import CallbackSink
from avq.sinks.jsonl import JsonLinesSink, JsonLinesSinkType
from avq.sinks.uri import open_sink


def builtin_sinks() -> tuple[SinkType, ...]:
    """The kinds avq brings, except the recorder (``avq.recording.RecorderSinkType``)."""
    return (JsonLinesSinkType(),)


__all__ = ["CallbackSink", "JsonLinesSink", "JsonLinesSinkType", "builtin_sinks", "open_sink"]
