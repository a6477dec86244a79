"""Every built-in kind of source and sink, from the rooms that have them."""

from __future__ import annotations

from collections.abc import Sequence

from avq.hookspecs import FrameSource, Sink, SinkType, SourceType


def source_types() -> tuple[SourceType, ...]:
    """Built-in sources; loads OpenCV, and mcap only when a log is opened."""
    from avq.sources import builtin_sources

    return (*builtin_sources(), _LazyLogSource())


def sink_types() -> tuple[SinkType, ...]:
    """Built-in sinks; loads mcap only when a log is written."""
    from avq.sinks import builtin_sinks

    return (*builtin_sinks(), _LazyRecorder())


def source_providers(outside: Sequence[SourceType] = ()) -> tuple[str, ...]:
    """How a capture process finds its source types again: the built-in ones, and classes of plugins by name.

    Args:
        outside: types plugins registered; the capture process makes them anew, without arguments.
    """
    names = (f"{type(one).__module__}:{type(one).__qualname__}" for one in outside)
    return ("avq.daemon.registry:source_types", *names)


class _LazyLogSource:
    schemes = (".mcap",)

    def open(self, uri: str, *, open_timeout_ms: int, read_timeout_ms: int) -> FrameSource:
        from avq.recording import LogSource

        return LogSource().open(uri, open_timeout_ms=open_timeout_ms, read_timeout_ms=read_timeout_ms)

    def check(self, uri: str) -> None:
        from avq.recording.source import parse_log_uri

        parse_log_uri(uri)


class _LazyRecorder:
    schemes = ("mcap", ".mcap")

    def open(self, uri: str, *, labels: Sequence[str]) -> Sink:
        from avq.recording import RecorderSinkType

        return RecorderSinkType().open(uri, labels=labels)

    def check(self, uri: str) -> None:
        from avq.recording.recorder import recorder_options

        recorder_options(uri)
