"""Errors with three parts: what went wrong, what was seen, what to do next.

Exit codes (the command contract): 0 fine, 1 the answer is no, 2 the request was wrong,
3 this machine cannot do it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from avq.redaction import redact


class AvqError(Exception):
    """Base class of every error that avq raises on purpose.

    Args:
        what: the failure in one sentence, naming the file, option or tensor.
        seen: the value, shape or state that was found.
        fix: the next thing to try, as a command where one exists.

    Passwords and other secrets of URIs are redacted in all three.
    """

    exit_code = 2

    def __init__(self, what: str, *, seen: str = "", fix: str = "") -> None:
        self.what = redact(what)
        self.seen = redact(seen)
        self.fix = redact(fix)
        super().__init__(self.what, self.seen, self.fix)

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors travel between processes: keyword arguments must, too."""
        return _rebuilt, (type(self), self.what, self.seen, self.fix)

    def __str__(self) -> str:
        lines = [self.what]
        if self.seen:
            lines.append(f"seen: {self.seen}")
        if self.fix:
            lines.append(f"do:   {self.fix}")
        return "\n".join(lines)


def _rebuilt(kind: type[AvqError], what: str, seen: str, fix: str) -> AvqError:
    error = kind.__new__(kind)
    AvqError.__init__(error, what, seen=seen, fix=fix)
    return error


class RequestError(AvqError):
    """The request was wrong: a path, an option, a configuration (exit code 2)."""


class ConfigError(RequestError):
    """A configuration file does not say what it must; ``seen`` carries file:line."""


class ModelError(RequestError):
    """The model cannot be read, normalised or decoded."""


class DataError(RequestError):
    """Pictures, videos, labels or logs cannot be read."""


class UnreadablePictureError(DataError):
    """One picture of a source cannot be read; the source continues with the next one."""


class CalibrationError(RequestError):
    """Calibration files are unlike, overlapping, damaged or do not belong to this model."""


class PlanError(RequestError):
    """A quantization plan is not valid for its graph."""


class BundleError(RequestError):
    """A bundle folder is damaged, incomplete or not acceptable."""


class PluginError(RequestError):
    """A plugin could not be loaded or broke its contract."""


class RefusedError(AvqError):
    """The answer is no: a gate failed or a difference was found (exit code 1)."""

    exit_code = 1


class MachineError(AvqError):
    """This machine cannot do it: a runtime, device or instruction set is missing (exit code 3)."""

    exit_code = 3


def nearest(name: str, valid: Iterable[str]) -> str:
    """The fix text for an unknown ``name``: the closest valid one first, then all of them."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    listed = ", ".join(names) if names else "(none)"
    return f"did you mean '{close[0]}'? valid: {listed}" if close else f"valid: {listed}"
