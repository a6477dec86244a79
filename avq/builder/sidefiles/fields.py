"""Fields of a JSON entry, taken strictly: a missing or wrong one names its line and what was expected."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from avq.builder.sidefiles.broken import broken
from avq.builder.sidefiles.located_json import Document
from avq.errors import CalibrationError

MOST_BITS = 32


@dataclass(frozen=True)
class Fields:
    """One entry of ``document``, read field by field.

    Attributes:
        name: the tensor, for errors.
        body: the entry's JSON value.
    """

    document: Document
    name: str
    body: Any

    def __post_init__(self) -> None:
        if not isinstance(self.body, dict):
            raise self.wrong("is not an object", repr(self.body)[:60], "an entry is written in braces")

    @property
    def line(self) -> int:
        return self.document.line(self.body)

    def wrong(self, what: str, seen: str, fix: str) -> CalibrationError:
        return broken(
            self.document.where,
            self.document.line(self.body),
            f"the encoding of '{self.name}' {what}",
            seen,
            fix,
        )

    def get(self, key: str, kind: type, fix: str) -> Any:
        """The value of ``key``; the error when it is missing or of another type (a bool is no int)."""
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
            raise self.wrong(f"has a broken '{key}'", repr(value), "offsets are whole numbers")
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
            raise self.wrong(f"has a broken '{key}'", f"{values[:4]}", "whole numbers only")
        return tuple(int(value) for value in values)


def named(document: Document, items: object, key: str) -> Iterator[tuple[str, Any]]:
    """(name, entry) of a list of entries; the error for one without a name."""
    if not isinstance(items, list):
        raise broken(
            document.where,
            document.line(items),
            f"'{key}' is not a list",
            type(items).__name__,
            "versions 1.0.0 and later list their encodings",
        )
    for item in items:
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str) or not name:
            raise broken(
                document.where,
                document.line(item),
                f"an entry of '{key}' has no name",
                repr(item)[:60],
                'write "name": TENSOR',
            )
        yield name, item
