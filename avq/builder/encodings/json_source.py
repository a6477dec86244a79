"""Strict JSON with line numbers: no NaN, no key twice, and errors that name file:line."""

from __future__ import annotations

import bisect
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from json import decoder, scanner
from typing import Any

from avq.errors import CalibrationError


def parse_error(where: str, line: int, what: str, seen: str, fix: str) -> CalibrationError:
    """Error for one line of a side file; its ``seen`` begins with file:line."""
    return CalibrationError(what, seen=f"{where}:{line}: {seen}", fix=fix)


def decode_text(data: bytes, where: str) -> str:
    """Text of a file.

    Raises:
        CalibrationError: it is not UTF-8; names file:line.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise parse_error(
            where, line, "the file is not UTF-8 text", f"byte {error.start}", "save it as UTF-8"
        ) from None


class Located(dict[str, Any]):
    """A JSON object; ``at`` is the index of the character after its opening brace."""

    at: int = 0


class Document:
    """A parsed file.

    Attributes:
        root: the outermost object.
        where: its name, for errors.
    """

    def __init__(self, data: bytes, where: str) -> None:
        self.where, self._text = where, decode_text(data, where)
        self.root = self._parse()

    def line(self, item: object) -> int:
        """Line of an object's opening brace, from 1; 1 for other values."""
        return self._line_at(item.at) if isinstance(item, Located) else 1

    def _line_at(self, at: int) -> int:
        return bisect.bisect_left(self._ends, at) + 1

    @cached_property
    def _ends(self) -> list[int]:
        return [match.start() for match in re.finditer("\n", self._text)]

    def _parse(self) -> Located:
        try:
            root = _decoder().decode(self._text)
        except json.JSONDecodeError as error:
            raise parse_error(
                self.where,
                error.lineno,
                "the file is not JSON",
                f"column {error.colno}: {error.msg}",
                "export it again",
            ) from None
        except _StrictJsonError as error:
            at = error.at if error.at >= 0 else self._text.find(error.seen)
            raise parse_error(self.where, self._line_at(at), error.what, error.seen, error.fix) from None
        except RecursionError:
            raise parse_error(
                self.where, 1, "the JSON is nested too deeply", "", "give a file that AIMET wrote"
            ) from None
        if not isinstance(root, Located):
            raise parse_error(
                self.where, 1, "the file is not one JSON object", type(root).__name__, "begin it with {"
            )
        return root


class _StrictJsonError(Exception):
    def __init__(self, at: int, what: str, seen: str, fix: str) -> None:
        self.at, self.what, self.seen, self.fix = at, what, seen, fix


def _decoder() -> json.JSONDecoder:
    """The standard decoder in pure Python, whose objects know their position."""
    strict = json.JSONDecoder(parse_constant=_no_constant)
    strict.parse_object = _object  # type: ignore[attr-defined]
    strict.scan_once = scanner.py_make_scanner(strict)  # type: ignore[attr-defined]
    return strict


def _object(
    s_and_end: tuple[str, int], strict: bool, scan_once: Callable[..., Any], *rest: Any
) -> tuple[Located, int]:
    at = s_and_end[1]
    memo = rest[2] if len(rest) > 2 else None
    pairs, end = decoder.JSONObject(  # type: ignore[attr-defined]
        s_and_end, strict, scan_once, None, list, memo
    )
    located = Located(pairs)
    located.at = at
    if len(located) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _StrictJsonError(at, "an object has one key twice", f"'{twice}'", "keep one of the two")
    return located, end


def _no_constant(name: str) -> Any:
    raise _StrictJsonError(-1, "a number is not finite", name, "write finite numbers")


MOST_BITS = 32


@dataclass(frozen=True)
class Fields:
    """Typed access to one entry of ``document``.

    Attributes:
        name: the tensor, for errors.
        body: the entry's JSON value.
    """

    document: Document
    name: str
    body: Any

    def __post_init__(self) -> None:
        if not isinstance(self.body, dict):
            raise self.wrong("is not an object", repr(self.body)[:60], "write the entry in braces")

    @property
    def line(self) -> int:
        return self.document.line(self.body)

    def wrong(self, what: str, seen: str, fix: str) -> CalibrationError:
        return parse_error(
            self.document.where,
            self.document.line(self.body),
            f"the encoding of '{self.name}' {what}",
            seen,
            fix,
        )

    def get(self, key: str, kind: type, fix: str) -> Any:
        """Value of ``key``.

        Raises:
            CalibrationError: it is missing or of another type; a bool is no int.
        """
        if key not in self.body:
            raise self.wrong(f"has no '{key}'", f"keys {', '.join(self.body) or 'none'}", fix)
        value = self.body[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.wrong(f"has a wrong '{key}'", repr(value)[:60], fix)
        return value

    def number(self, key: str) -> float:
        """A finite number."""
        value = self.body.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(f"has no finite '{key}'", repr(value)[:60], "write one number")
        return float(value)

    def bits(self, key: str) -> int:
        value: int = self.get(key, int, f"a whole number from 1 to {MOST_BITS}")
        if not 1 <= value <= MOST_BITS:
            raise self.wrong(f"has a wrong '{key}'", str(value), f"a whole number from 1 to {MOST_BITS}")
        return value

    def whole(self, key: str) -> int:
        """An integer; 0.x files also write it as 0.0."""
        value = self.number(key)
        if value != int(value):
            raise self.wrong(f"has a parse_error '{key}'", repr(value), "offsets are whole numbers")
        return int(value)

    def truth(self, key: str) -> bool:
        """true, false, "True" or "False"."""
        value = self.body.get(key)
        if isinstance(value, bool):
            return value
        if value in ("True", "False", "true", "false"):
            return str(value).lower() == "true"
        raise self.wrong(f"has no '{key}'", repr(value)[:60], 'write "True" or "False"')

    def numbers(self, key: str) -> tuple[float, ...]:
        """A flat, not empty list of finite numbers."""
        values = self.get(key, list, "a list of numbers")
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise self.wrong(f"has a '{key}' that is no number", repr(value)[:60], "finite numbers only")
        if not values:
            raise self.wrong(f"has an empty '{key}'", "[]", "one number per tensor, channel or block")
        return tuple(float(value) for value in values)

    def wholes(self, key: str) -> tuple[int, ...]:
        values = self.numbers(key)
        if any(value != int(value) for value in values):
            raise self.wrong(f"has a parse_error '{key}'", f"{values[:4]}", "whole numbers only")
        return tuple(int(value) for value in values)


def named(document: Document, items: object, key: str) -> Iterator[tuple[str, Any]]:
    """(name, entry) of a list of entries.

    Raises:
        CalibrationError: no list, or an entry without a name; names file:line.
    """
    if not isinstance(items, list):
        raise parse_error(
            document.where,
            document.line(items),
            f"'{key}' is not a list",
            type(items).__name__,
            "write a list, as versions 1.0.0 and later do",
        )
    for item in items:
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str) or not name:
            raise parse_error(
                document.where,
                document.line(item),
                f"an entry of '{key}' has no name",
                repr(item)[:60],
                'write "name": TENSOR',
            )
        yield name, item
