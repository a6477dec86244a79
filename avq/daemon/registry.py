"""The built-in source and sink types; libraries are loaded when a type is used."""

from __future__ import annotations

from collections.abc import Sequence

from avq.hookspecs import FrameSource, Sink, SinkType, SourceType


def source_types() -> tuple[SourceType, ...]:
    """Return the built-in source types; loads OpenCV, and mcap only when a log is opened."""
    from avq.sources import builtin_sources

    return (*builtin_sources(), LazyLogSource())


def sink_types() -> tuple[SinkType, ...]:
    """Return the built-in sink types; loads mcap only when a log is written."""
    from avq.sinks import builtin_sinks

    return (*builtin_sinks(), LazyRecorder())


def source_providers(outside: Sequence[SourceType] = ()) -> tuple[str, ...]:
    """Return the names by which a capture process finds its source types: "module:function" or "module:class".

    Args:
        outside: source types of plugins; the capture process constructs them again, without arguments.
    """
    names = (f"{type(kind).__module__}:{type(kind).__qualname__}" for kind in outside)
    return ("avq.daemon.registry:source_types", *names)


class LazyLogSource:
    """Recorded MCAP logs as a source."""

    schemes = (".mcap",)

    def open(self, uri: str, *, open_timeout_ms: int, read_timeout_ms: int) -> FrameSource:
        from avq.recording import LogSource

        return LogSource().open(uri, open_timeout_ms=open_timeout_ms, read_timeout_ms=read_timeout_ms)

    def check(self, uri: str) -> None:
        from avq.recording.source import parse_log_uri

        parse_log_uri(uri)


class LazyRecorder:
    """The MCAP recorder."""

    schemes = ("mcap", ".mcap")

    def open(self, uri: str, *, labels: Sequence[str]) -> Sink:
        from avq.recording import RecorderSinkType

        return RecorderSinkType().open(uri, labels=labels)

    def check(self, uri: str) -> None:
        from avq.recording.recorder import recorder_options

        recorder_options(uri)

    def require_free(self, uri: str) -> None:
        """Raise DataError when another process records under this name."""
        from avq.recording import RecorderSinkType

        RecorderSinkType().require_free(uri)
