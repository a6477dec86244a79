"""Log records of a run: levels, module filters, one line each, the journal, and those of uvicorn."""

from __future__ import annotations

import io
import logging
import os
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from avq.config import RunConfig
from avq.errors import RequestError
from avq.progress import Silent
from avq.serve.log_records import (
    LineFormatter,
    LineHandler,
    ReporterHandler,
    is_journal,
    levels_of,
    log_records,
    one_line,
)
from avq.web.server import open_site

LEVELS = ("debug", "info", "warning", "error")
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00 (debug|info|warning|error) ([\w.]+): (.*)")


def config(**keys: object) -> RunConfig:
    cameras = ({"id": "front", "source": "scene://drive"},)
    return RunConfig.model_validate({"bundle": "b.avq", "cameras": cameras, **keys})


def lines_of(run: RunConfig, work: Callable[[], object], *, journal: bool = False) -> list[str]:
    """Lines that a run with this configuration writes during ``work``."""
    written = io.BytesIO()
    handler = LineHandler(lambda line: cast(None, written.write(line)))
    handler.setFormatter(LineFormatter(journal=journal))
    with log_records(handler, levels_of(run)):
        work()
    return written.getvalue().decode().splitlines()


def log_everything() -> None:
    for module in ("avq.daemon", "avq.daemon.events", "avq.web", "avq.sinks.mqtt", "uvicorn.error"):
        for level in LEVELS:
            logging.getLogger(module).log(logging.getLevelName(level.upper()), "%s text", level)


def parts_of(lines: list[str]) -> list[tuple[str, str]]:
    """(level, logger) of every line."""
    matches = [LINE.fullmatch(line) for line in lines]
    assert all(matches), lines
    return [(match[1], match[2]) for match in matches if match]


@pytest.mark.parametrize("level", LEVELS)
def test_the_level_filters_every_module(level: str) -> None:
    rows = parts_of(lines_of(config(log_level=level), log_everything))
    shown = LEVELS[LEVELS.index(level) :]
    for module in ("avq.daemon", "avq.daemon.events", "avq.web", "avq.sinks.mqtt"):
        assert [row[0] for row in rows if row[1] == module] == list(shown)
    of_uvicorn = [row[0] for row in rows if row[1] == "uvicorn.error"]
    assert of_uvicorn == ([*shown[1:]] if level == "info" else [*shown])


def test_a_module_has_a_level_of_its_own() -> None:
    run = config(log_level="error", log_filters={"daemon": "debug", "web": "warning"})
    rows = parts_of(lines_of(run, log_everything))
    assert [row for row in rows if row[1].startswith("avq.daemon")] == [
        (level, module) for module in ("avq.daemon", "avq.daemon.events") for level in LEVELS
    ]
    assert [row[0] for row in rows if row[1] == "avq.web"] == ["warning", "error"]
    assert [row[0] for row in rows if row[1] == "uvicorn.error"] == ["warning", "error"]
    assert [row[0] for row in rows if row[1] == "avq.sinks.mqtt"] == ["error"]


def test_levels_and_handlers_are_restored() -> None:
    before = [
        (logging.getLogger(name).level, list(logging.getLogger(name).handlers)) for name in ("avq", "uvicorn")
    ]
    lines_of(config(log_level="debug"), log_everything)
    after = [
        (logging.getLogger(name).level, list(logging.getLogger(name).handlers)) for name in ("avq", "uvicorn")
    ]
    assert after == before


def test_json_lines_show_warnings_unless_a_level_is_configured() -> None:
    assert levels_of(config(), quiet=True)["avq"] == "warning"
    assert levels_of(config(log_level="info"), quiet=True)["avq"] == "info"


def test_a_record_is_one_line_even_with_line_breaks_and_a_traceback() -> None:
    def work() -> None:
        log = logging.getLogger("avq.daemon")
        log.warning("first\nsecond\r\n\n  third\x1b[31m\u2028fourth\x00")
        log.warning("%s", RequestError("no", seen="this", fix="that"))
        try:
            raise ValueError("several\nlines")
        except ValueError:
            log.exception("failed")

    lines = lines_of(config(), work)
    assert len(parts_of(lines)) == 3
    assert lines[0].endswith("avq.daemon: first | second | third\\x1b[31m | fourth\\x00")
    assert "Traceback" in lines[2] and "ValueError: several | lines" in lines[2]
    assert one_line("") == ""


def test_the_journal_gets_priorities_and_no_time() -> None:
    lines = lines_of(config(log_level="debug"), log_everything, journal=True)
    assert [line for line in lines if "avq.web" in line] == [
        f"<{priority}>avq.web: {level} text" for priority, level in zip((7, 6, 4, 3), LEVELS, strict=True)
    ]


def test_the_journal_is_known_by_its_stream(tmp_path: Path) -> None:
    with (tmp_path / "journal").open("w") as file:
        status = os.fstat(file.fileno())
        stream = f"{status.st_dev}:{status.st_ino}"
        assert is_journal(file.fileno(), {"JOURNAL_STREAM": stream})
        assert not is_journal(file.fileno(), {"JOURNAL_STREAM": f"{status.st_dev}:0"})
        assert not is_journal(file.fileno(), {})
    assert not is_journal(-1, {"JOURNAL_STREAM": stream})


def test_records_of_uvicorn_arrive_in_the_same_format() -> None:
    def bad_request() -> None:
        with open_site("127.0.0.1", 0, None) as (_, address):
            host, _, port = address.removeprefix("http://").partition(":")
            with socket.create_connection((host, int(port)), timeout=60) as connection:
                connection.sendall(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
                assert connection.recv(4096)

    rows = parts_of(lines_of(config(), bad_request))
    assert ("warning", "uvicorn.error") in rows
    started = parts_of(lines_of(config(log_filters={"web": "info"}), bad_request))
    assert ("info", "uvicorn.error") in started


def test_a_blocked_reader_delays_no_thread_that_logs() -> None:
    released, written = threading.Event(), []

    def write(line: bytes) -> None:
        assert released.wait(60)
        written.append(line)

    handler = LineHandler(write)
    handler.setFormatter(LineFormatter())
    with log_records(handler, levels_of(config())):
        for number in range(3000):
            logging.getLogger("avq.daemon").warning("line %d", number)
        dropped = handler.dropped
        assert dropped > 0
        released.set()
    assert len(written) + dropped == 3000
    assert sum(f"{dropped} records were dropped".encode() in line for line in written) == 1


class Collecting(Silent):
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def message(self, text: str) -> None:
        self.lines.append(("message", text))

    def warning(self, text: str) -> None:
        self.lines.append(("warning", text))


def test_a_reporter_gets_messages_and_warnings() -> None:
    report = Collecting()
    with log_records(ReporterHandler(report), levels_of(config())):
        logging.getLogger("avq.serve").info("page: %s", "http://127.0.0.1:1")
        logging.getLogger("avq.daemon").error("two\nlines")
        logging.getLogger("avq.daemon").debug("hidden")
    assert report.lines == [("message", "page: http://127.0.0.1:1"), ("warning", "two | lines")]
