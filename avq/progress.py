"""Reporters of long work: messages, tables and progress."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Reporter(Protocol):
    """Receives the messages of a build, a calibration or a demo."""

    def message(self, text: str) -> None: ...

    def warning(self, text: str) -> None: ...

    def table(self, title: str, rows: Sequence[Mapping[str, object]]) -> None: ...

    def track(self, items: Iterable[T], label: str, total: int) -> Iterator[T]:
        """Yield ``items`` and show the progress."""
        ...


class Silent:
    """Ignores everything; for tests and library use."""

    def message(self, text: str) -> None:
        pass

    def warning(self, text: str) -> None:
        pass

    def table(self, title: str, rows: Sequence[Mapping[str, object]]) -> None:
        pass

    def track(self, items: Iterable[T], label: str, total: int) -> Iterator[T]:
        del label, total
        yield from items
