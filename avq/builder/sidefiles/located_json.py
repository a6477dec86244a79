"""JSON that knows on which line each object begins, and takes no liberties: no NaN, no name twice."""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Callable
from functools import cached_property
from json import decoder, scanner
from typing import Any

from avq.builder.sidefiles.broken import broken, decoded


class Located(dict[str, Any]):
    """A JSON object; ``at`` is the character after its opening brace."""

    at: int = 0


class Document:
    """A parsed file.

    Attributes:
        root: the outermost object.
        where: its name, for errors.
    """

    def __init__(self, data: bytes, where: str) -> None:
        self.where, self._text = where, decoded(data, where)
        self.root = self._parse()

    def line(self, item: object) -> int:
        """The line an object begins on; 1 for anything else."""
        return self._line_at(item.at) if isinstance(item, Located) else 1

    def _line_at(self, at: int) -> int:
        return bisect.bisect_left(self._ends, at) + 1

    @cached_property
    def _ends(self) -> list[int]:
        return [found.start() for found in re.finditer("\n", self._text)]

    def _parse(self) -> Located:
        try:
            root = _decoder().decode(self._text)
        except json.JSONDecodeError as error:
            raise broken(
                self.where,
                error.lineno,
                "this is not JSON",
                f"column {error.colno}: {error.msg}",
                "repair it",
            ) from None
        except _LibertyError as error:
            at = error.at if error.at >= 0 else self._text.find(error.seen)
            raise broken(self.where, self._line_at(at), error.what, error.seen, error.fix) from None
        except RecursionError:
            raise broken(self.where, 1, "the JSON is nested too deeply", "", "encodings are flat") from None
        if not isinstance(root, Located):
            raise broken(self.where, 1, "encodings are one JSON object", type(root).__name__, "begin with {")
        return root


class _LibertyError(Exception):
    def __init__(self, at: int, what: str, seen: str, fix: str) -> None:
        self.at, self.what, self.seen, self.fix = at, what, seen, fix


def _decoder() -> json.JSONDecoder:
    """The standard decoder in its Python form, whose objects can be told where they begin."""
    made = json.JSONDecoder(parse_constant=_no_constant)
    made.parse_object = _object  # type: ignore[attr-defined]
    made.scan_once = scanner.py_make_scanner(made)  # type: ignore[attr-defined]
    return made


def _object(
    s_and_end: tuple[str, int], strict: bool, scan_once: Callable[..., Any], *rest: Any
) -> tuple[Located, int]:
    at = s_and_end[1]
    memo = rest[2] if len(rest) > 2 else None
    pairs, end = decoder.JSONObject(  # type: ignore[attr-defined]
        s_and_end, strict, scan_once, None, list, memo
    )
    found = Located(pairs)
    found.at = at
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _LibertyError(at, "one object names a key twice", f"'{twice}'", "keep one of the two")
    return found, end


def _no_constant(name: str) -> Any:
    raise _LibertyError(-1, "the file holds a number that is none", name, "scales are finite numbers")
