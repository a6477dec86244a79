"""Failures that nothing else handles: the traceback goes to a file, and the user gets words."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import threading
import time
import traceback
from importlib import metadata
from pathlib import Path

from avq.cli.terminal import shown
from avq.errors import AvqError, MachineError
from avq.redaction import redact

_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+).*extra == ['\"]([a-z]+)['\"]")
#: Import name -> distribution, where they differ.
_DISTRIBUTIONS = {
    "faster_coco_eval": "faster-coco-eval",
    "paho": "paho-mqtt",
    "prometheus_client": "prometheus-client",
    "tensorrt_rtx": "tensorrt-rtx-cu12",
    "zenoh": "eclipse-zenoh",
}


def as_avq_error(error: BaseException) -> AvqError:
    """Turn any exception into an error in words; the traceback of an unexpected one is written to a file."""
    if isinstance(error, AvqError):
        return error
    if isinstance(error, ModuleNotFoundError) and (extra := extra_of(error.name or "")):
        return MachineError(
            f"this command needs a library that is not installed: {error.name}",
            seen=str(error),
            fix=f'pip install "avq[{extra}]"',
        )
    path = write_traceback(error)
    where = f"its traceback is in {path}" if path is not None else "its traceback could not be written"
    if isinstance(error, MemoryError):
        return MachineError(
            "there is not enough memory", seen=where, fix="give the process more memory, or it less work"
        )
    return MachineError(
        f"avq failed: {describe(error)}",
        seen=where,
        fix="this is a fault of avq or of a plugin: report it with that file",
    )


def describe(error: BaseException) -> str:
    """One line: type and text."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def extra_of(module: str) -> str | None:
    """The extra of avq whose requirements bring a module; None where none does."""
    name = module.partition(".")[0]
    distribution = _DISTRIBUTIONS.get(name, name)
    try:
        requirements = metadata.requires("avq") or []
    except metadata.PackageNotFoundError:
        return None
    for requirement in requirements:
        match = _REQUIREMENT.match(requirement)
        if match and match.group(1).lower() == distribution.lower() and match.group(2) != "dev":
            return match.group(2)
    return None


def write_traceback(error: BaseException) -> Path | None:
    """Write the traceback to a new file that only its owner can read; None when that fails too.

    Under systemd it goes to the state directory, as the unit's temporary files end with the service.
    """
    folder = os.environ.get("STATE_DIRECTORY", "").partition(":")[0] or tempfile.gettempdir()
    prefix = time.strftime("avq-traceback-%Y%m%dT%H%M%SZ-", time.gmtime())
    try:
        descriptor, name = tempfile.mkstemp(".txt", prefix, folder)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            lines = traceback.format_exception(type(error), error, error.__traceback__)
            file.write(redact("".join(lines)))
    except (OSError, ValueError):
        return None
    return Path(name)


def report_thread_failures() -> None:
    """Report exceptions that end a thread in one line, with the traceback in a file."""

    def report(failure: threading.ExceptHookArgs) -> None:
        if failure.exc_value is None or failure.exc_type is SystemExit:
            return
        error = as_avq_error(failure.exc_value)
        thread = failure.thread.name if failure.thread is not None else "a thread"
        print(f"error: {thread}: {shown(error.what)} ({shown(error.seen)})", file=sys.stderr)

    threading.excepthook = report
