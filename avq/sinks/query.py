"""The ``?key=value&...`` part of a sink's URI."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import parse_qsl

from avq.errors import RequestError, nearest


def parameters(uri: str, valid: Iterable[str]) -> dict[str, str]:
    """Raises RequestError on a key that is not valid."""
    names = list(valid)
    table = dict(parse_qsl(uri.partition("?")[2], keep_blank_values=True))
    for key in table:
        if key not in names:
            raise RequestError(f"unknown parameter '{key}'", seen=uri, fix=nearest(key, names))
    return table


def whole(table: Mapping[str, str], key: str, default: int, low: int, high: int) -> int:
    """A parameter as a whole number within ``low``..``high``. Raises RequestError."""
    text = table.get(key, str(default))
    if not (text.isdecimal() and low <= int(text) <= high):
        raise RequestError(f"parameter '{key}' is not valid", seen=text, fix=f"a whole number {low}..{high}")
    return int(text)
