"""Log records of a run: one line each on standard error, or calls of a Reporter; filtered by level and module."""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from queue import SimpleQueue

from avq.config import LogLevel, RunConfig
from avq.process import STANDARD_ERROR
from avq.progress import Reporter
from avq.redaction import redact
from avq.text import printable

#: Loggers that get the handler of a run; the modules of avq are children of the first.
ROOTS = ("avq", "uvicorn")
#: Syslog priorities, which systemd reads at the start of a line.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_LINES_QUEUED = 1024
_CLOSE_S = 2.0


def one_line(text: str) -> str:
    """Join lines by " | ", show control characters as text, and redact secrets of URIs."""
    lines = (line.strip() for line in redact(text).splitlines())
    return printable(" | ".join(line for line in lines if line))


class LineFormatter(logging.Formatter):
    """Formats a record as one line: ``2026-11-30T12:00:00.000+00:00 info avq.web: text``.

    Args:
        journal: ``<6>avq.web: text`` instead; the journal adds the time itself.
    """

    def __init__(self, *, journal: bool = False) -> None:
        super().__init__("%(message)s")
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        text = one_line(f"{record.name}: {super().format(record)}")
        if self._journal:
            return f"<{_PRIORITIES.get(record.levelno, 6)}>{text}"
        time = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        return f"{time} {record.levelname.lower()} {text}"


def is_journal(descriptor: int = STANDARD_ERROR, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a descriptor is connected to the journal of systemd (``JOURNAL_STREAM``)."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class LineHandler(logging.Handler):
    """Writes formatted records on a thread of its own: a blocked reader delays no thread that logs.

    Records beyond a bounded queue are dropped; their number is logged when the reader takes lines again.

    Args:
        write: takes one line with its line break; may block.
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        super().__init__()
        self.dropped = 0
        self._write = write
        self._lines: SimpleQueue[str | None] = SimpleQueue()  # bounded by emit()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if self._lines.qsize() >= _LINES_QUEUED:
            self.dropped += 1
            return
        try:
            self._lines.put(self.format(record))
        except Exception:
            self.handleError(record)

    def _run(self) -> None:
        reported = 0
        while (line := self._lines.get()) is not None:
            if self.dropped > reported:
                line = f"{line} | {self.dropped - reported} records were dropped"
                reported = self.dropped
            with suppress(OSError):
                self._write(f"{line}\n".encode("utf-8", "replace"))

    def close(self) -> None:
        """Write the queued lines, for two seconds at most."""
        self._lines.put(None)
        self._thread.join(_CLOSE_S)
        super().close()


def write_standard_error(line: bytes) -> None:
    """Write a whole line to the descriptor, without the lock of ``sys.stderr``.

    Raises:
        OSError: it is closed.
    """
    left = memoryview(line)
    while left:
        try:
            left = left[os.write(STANDARD_ERROR, left) :]
        except BlockingIOError:
            select.select([], [STANDARD_ERROR], [])


def standard_error_handler() -> LineHandler:
    """Create the handler of a service: lines for the journal where systemd reads them, else with time and level."""
    handler = LineHandler(write_standard_error)
    handler.setFormatter(LineFormatter(journal=is_journal()))
    return handler


class ReporterHandler(logging.Handler):
    """Forwards records to a Reporter: warnings and errors as warnings, the rest as messages."""

    def __init__(self, report: Reporter) -> None:
        super().__init__()
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        text = one_line(self.format(record))
        if record.levelno >= logging.WARNING:
            self._report.warning(text)
        else:
            self._report.message(text)


def levels_of(config: RunConfig, *, quiet: bool = False) -> dict[str, LogLevel]:
    """Map logger names to levels, as ``log_level`` and ``[log_filters]`` set them.

    uvicorn follows ``web``; its start and stop messages need ``web = "info"``.

    Args:
        config: of the run.
        quiet: "warning" instead of the default level.
    """
    level = "warning" if quiet and "log_level" not in config.model_fields_set else config.log_level
    levels: dict[str, LogLevel] = {"avq": level, "uvicorn": "warning" if level == "info" else level}
    for module, own in config.log_filters.model_dump(exclude_none=True).items():
        levels[f"avq.{module}"] = own
        if module == "web":
            levels["uvicorn"] = own
    return levels


@contextmanager
def log_records(handler: logging.Handler, levels: Mapping[str, LogLevel]) -> Iterator[None]:
    """Send the records of avq and uvicorn to ``handler`` until the block is left; then close it.

    Args:
        handler: added to the loggers of ROOTS.
        levels: logger name -> level; children inherit.
    """
    before = {name: logging.getLogger(name).level for name in levels}
    try:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level.upper())
        for name in ROOTS:
            logging.getLogger(name).addHandler(handler)
        yield
    finally:
        for name in ROOTS:
            logging.getLogger(name).removeHandler(handler)
        for name, number in before.items():
            logging.getLogger(name).setLevel(number)
        handler.close()
