"""MCAP both ways: the flight recorder, a reader that survives a crash, and logs as a source.

Imported only where a log is written or read; the ``mcap`` package is loaded with it.
"""

from __future__ import annotations

from avq.recording.reader import LogReader, Record
from avq.recording.recorder import RecorderSink, RecorderSinkType
from avq.recording.source import LogSource
from avq.recording.writer import LogWriter

__all__ = ["LogReader", "LogSource", "LogWriter", "Record", "RecorderSink", "RecorderSinkType"]
