"""How long work talks to a person: messages, tables and progress, on standard error or nowhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Reporter(Protocol):
    """Where a build, a calibration or a demo says what it is doing."""

    def message(self, text: str) -> None: ...

    def warning(self, text: str) -> None: ...

    def table(self, title: str, rows: Sequence[Mapping[str, object]]) -> None: ...

    def track(self, items: Iterable[T], label: str, total: int) -> Iterator[T]:
        """Yield ``items`` and show how far it is."""
        ...


class Silent:
    """Says nothing; for tests and library use."""

    def message(self, text: str) -> None:
        pass

    def warning(self, text: str) -> None:
        pass

    def table(self, title: str, rows: Sequence[Mapping[str, object]]) -> None:
        pass

    def track(self, items: Iterable[T], label: str, total: int) -> Iterator[T]:
        del label, total
        yield from items
