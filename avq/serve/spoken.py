"""How much a run says on standard error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from avq.config import LogLevel
from avq.progress import Reporter

T = TypeVar("T")
_ORDER: tuple[LogLevel, ...] = ("debug", "info", "warning", "error")


class Spoken:
    """A Reporter that keeps to the ``log_level`` of the configuration: what ends the run is always told."""

    def __init__(self, report: Reporter, level: LogLevel) -> None:
        self._report = report
        self._level = _ORDER.index(level)

    def event(self, event: Mapping[str, Any]) -> None:
        """One line of JSON, for debugging."""
        if self._says("debug"):
            self._report.message(msgspec.json.encode(event).decode())

    def message(self, text: str) -> None:
        if self._says("info"):
            self._report.message(text)

    def warning(self, text: str) -> None:
        if self._says("warning"):
            self._report.warning(text)

    def table(self, title: str, rows: Sequence[Mapping[str, object]]) -> None:
        if self._says("info"):
            self._report.table(title, rows)

    def track(self, items: Iterable[T], label: str, total: int) -> Iterator[T]:
        return self._report.track(items, label, total)

    def _says(self, level: LogLevel) -> bool:
        return self._level <= _ORDER.index(level)
