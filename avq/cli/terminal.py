"""Messages, tables and progress bars of the command line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from avq.redaction import redact
from avq.text import printable

T = TypeVar("T")

#: Rows of a table on the terminal; the report has all of them.
_MAX_ROWS = 20


class Terminal:
    """Reporter that writes to standard error.

    Args:
        quiet: show warnings and errors only, for ``--json``.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = console(stderr=True)
        self._quiet = quiet

    def message(self, text: str) -> None:
        if not self._quiet:
            self._print(Text(shown(text)))

    def warning(self, text: str) -> None:
        self._print(Text.assemble(("warning: ", "yellow"), shown(text)))

    def error(self, text: str) -> None:
        self._console.print(Text.assemble(("error: ", "bold red"), shown(text)), soft_wrap=True)

    def _print(self, text: Text) -> None:
        """Print a message; fold it between words on a terminal only."""
        self._console.print(text, soft_wrap=not self._console.is_terminal)

    def table(self, title: str, rows: Sequence[Mapping[str, object]]) -> None:
        if rows and not self._quiet:
            self._console.print(as_table(title, rows[:_MAX_ROWS]))
        if len(rows) > _MAX_ROWS:
            self.message(f"and {len(rows) - _MAX_ROWS} more rows, in the report")

    def track(self, items: Iterable[T], label: str, total: int) -> Iterator[T]:
        with self._progress() as progress:
            task = progress.add_task(shown(label), total=total)
            for item in items:
                yield item
                progress.advance(task)

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=self._quiet or not self._console.is_terminal,
        )


def console(*, stderr: bool = False) -> Console:
    """Return a rich console; 160 columns wide where the output is not a terminal."""
    screen = Console(stderr=stderr, highlight=False)
    return screen if screen.is_terminal else Console(stderr=stderr, highlight=False, width=160)


def as_table(title: str, rows: Sequence[Mapping[str, object]]) -> Table:
    """Return a table; its columns are the keys of the rows, in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(
        title=Text(shown(title)) if title else None,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=None,
    )
    for column in columns:
        numeric = all(isinstance(row.get(column, 0), (int, float)) for row in rows)
        table.add_column(Text(_cell(column)), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(
            *(Text(_cell(row.get(column, ""))) for column in columns)
        )  # Text: brackets are not markup
    return table


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else shown(str(value)).replace("\n", "\\n")


def shown(text: str) -> str:
    """Return foreign text as a terminal may show it: control characters as text, secrets of URIs redacted."""
    return printable(redact(text))
