"""Read TOML with the line of every key, so that errors can name file:line."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avq.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]


Location = tuple["str | int", ...]

_KEY = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_DOTTED = rf"\s*{_KEY}(?:\s*\.\s*{_KEY})*\s*"
_ARRAY_TABLE = re.compile(rf"\s*\[\[({_DOTTED})\]\]")
_TABLE = re.compile(rf"\s*\[({_DOTTED})\]")
_ASSIGNMENT = re.compile(rf"({_DOTTED})=")
_TOKEN = re.compile(r'"""|' + r"'''|" + r'"(?:[^"\\]|\\.)*"|' + r"'[^']*'|[\[\]{}#]")


#: Limits of a configuration file: bytes, and how deep keys and values are nested.
MAX_BYTES = 1 << 18
MAX_DEPTH = 64
#: Brackets outside of strings and comments; the rest is skipped.
_MARKS = re.compile(
    r'"""(?:\\.|[^\\])*?"""|\'\'\'.*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|#[^\n]*|([\[\]{}])', re.DOTALL
)


@dataclass(frozen=True)
class TomlFile:
    """A parsed TOML file.

    Attributes:
        path: path as given.
        data: the document.
        lines: location of each key -> line, counted from 1.
    """

    path: Path
    data: dict[str, Any]
    lines: dict[Location, int]

    def line_of(self, location: Sequence[str | int]) -> int:
        """Return the line of a key, else of the table or value around it, else 1."""
        for length in range(len(location), 0, -1):
            line = self.lines.get(tuple(location[:length]))
            if line is not None:
                return line
        return 1


def read_toml(path: Path) -> TomlFile:
    """Parse the file at ``path``.

    Raises:
        ConfigError: the file cannot be read or is not TOML; the error names file:line.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _too_large(path, f"{path.stat().st_size} bytes, more than {MAX_BYTES}")
        text = path.read_bytes().decode("utf-8")
        _require_depth(path, text)
        return TomlFile(path, tomllib.loads(text), key_lines(text))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ConfigError(
            f"cannot read the configuration {path}", seen=reason, fix="check the path"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text", seen=str(error), fix="save it as UTF-8") from None
    except RecursionError:
        raise _too_large(path, "nested too deep") from None
    except ValueError as error:  # TOMLDecodeError, and integers of thousands of digits
        where = re.search(r"line (\d+)", str(error))
        line = where.group(1) if where else str(text.count("\n") + 1)
        raise ConfigError(
            f"{path} is not valid TOML", seen=f"{path}:{line}: {error}", fix="see https://toml.io"
        ) from None


def _require_depth(path: Path, text: str) -> None:
    """Refuse keys of many parts and deeply nested values, which take the parser gigabytes or its whole stack."""
    depth = deepest = 0
    for mark in filter(None, _MARKS.findall(text)):
        depth += (mark in "[{") - (mark in "]}")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise _too_large(path, f"values nested {deepest} deep, more than {MAX_DEPTH}")
    for number, line in enumerate(text.splitlines(), start=1):
        parts = line.partition("=")[0].count(".") + 1 if "." in line else 1
        if parts > MAX_DEPTH:
            raise _too_large(path, f"{path}:{number}: a key of {parts} parts, more than {MAX_DEPTH}")


def _too_large(path: Path, seen: str) -> ConfigError:
    return ConfigError(
        f"{path} is too large for a configuration", seen=seen, fix="check that it is the right file"
    )


def key_lines(text: str) -> dict[Location, int]:
    """Return location -> line of every table head and every ``key =`` at the start of a line.

    Keys inside an inline table or a list are not listed; ``TomlFile.line_of`` returns the line of their value.

    Args:
        text: valid TOML.
    """
    lines: dict[Location, int] = {}
    counts: dict[Location, int] = {}
    table: Location = ()
    for number, line in _statements(text):
        if match := _ARRAY_TABLE.match(line):
            name = _resolve(_parts(match.group(1)), counts)
            counts[name] = counts.get(name, -1) + 1
            table = (*name, counts[name])
            lines.setdefault(name, number)
            lines[table] = number
        elif match := _TABLE.match(line):
            table = _resolve(_parts(match.group(1)), counts)
            lines.setdefault(table, number)
        elif match := _ASSIGNMENT.match(line):
            parts = _parts(match.group(1))
            for length in range(1, len(parts) + 1):
                lines.setdefault((*table, *parts[:length]), number)
    return lines


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that begin a statement, with their numbers: not lines inside a string, list or table."""
    depth, quote = 0, ""
    for number, line in enumerate(text.splitlines(), start=1):
        if not depth and not quote:
            yield number, line
        body = line
        if not depth and not quote and (_ARRAY_TABLE.match(line) or _TABLE.match(line)):
            continue
        depth, quote = _scan(body, depth, quote)


def _scan(line: str, depth: int, quote: str) -> tuple[int, str]:
    """Return the bracket depth and the open multi-line quote at the end of ``line``."""
    place = 0
    while place < len(line):
        if quote:
            end = line.find(quote, place)
            if end < 0:
                return depth, quote
            place, quote = end + 3, ""
            continue
        match = _TOKEN.search(line, place)
        if match is None or match.group() == "#":
            break
        place = match.end()
        token = match.group()
        if token in ('"""', "'''"):
            quote = token
        elif token in ("[", "{"):
            depth += 1
        elif token in ("]", "}"):
            depth -= 1
    return depth, quote


def _parts(dotted: str) -> Location:
    return tuple(part.strip("\"'") if part[0] in "\"'" else part for part in re.findall(_KEY, dotted))


def _resolve(name: Location, counts: dict[Location, int]) -> Location:
    """Insert list indices: ``cameras.lens`` below the second ``[[cameras]]`` is ("cameras", 1, "lens")."""
    resolved: Location = ()
    for n, part in enumerate(name):
        resolved = (*resolved, part)
        if n < len(name) - 1 and resolved in counts:
            resolved = (*resolved, counts[resolved])
    return resolved
