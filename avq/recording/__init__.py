"""MCAP logs: the flight recorder, a reader that copes with damage, and logs as frame sources.

Imported only where a log is written or read: it loads the ``mcap`` package.
"""

from __future__ import annotations

from avq.recording.reader import LogReader, Record
from avq.recording.recorder import RecorderSink, RecorderSinkType
from avq.recording.source import LogSource
from avq.recording.writer import LogWriter

__all__ = ["LogReader", "LogSource", "LogWriter", "Record", "RecorderSink", "RecorderSinkType"]
